// The line that says how far a run is.
import { element } from "../elements.js";
import { count } from "../table/values.js";

/** A bar with count, rate and time left, and a button that cancels. */
export class Progress {
  /** Args: `parent` gets the line as its first child; `onCancel` is called by the button. */
  constructor(parent, onCancel) {
    this.bar = element("progress", { aria: { label: "Progress of the predictions" } });
    this.text = element("span", { className: "progress-text" });
    const cancel = element("button", { type: "button", id: "cancel", on: { click: onCancel } }, "Cancel");
    this.line = element("div", { className: "progress", id: "progress", hidden: true }, this.bar, this.text, cancel);
    parent.prepend(this.line);
  }

  /** Begin: `total` is the number of rows, null while it is not known. */
  begin(total) {
    this.started = performance.now();
    this.total = total;
    this.line.hidden = false;
    this.update(0);
  }

  /** Say that `done` rows are answered. */
  update(done, total = this.total) {
    this.total = total;
    if (total === null) this.bar.removeAttribute("value");
    else [this.bar.max, this.bar.value] = [Math.max(1, total), done];
    const seconds = (performance.now() - this.started) / 1000;
    const facts = [total === null ? `${count(done)} molecules` : `${count(done)} of ${count(total)}`];
    if (done && seconds > 0.5) {
      const rate = done / seconds;
      facts.push(`${count(Math.max(1, Math.round(rate)))}/s`);
      if (total > done) facts.push(`${duration((total - done) / rate)} left`);
    }
    this.text.textContent = facts.join(" · ");
  }

  /** Say something in place of the figures. */
  note(text) {
    this.text.textContent = text;
  }

  /** Hide the line. */
  end() {
    this.line.hidden = true;
  }
}

function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
