// Which labels the table shows, and the dialog that chooses them.
import { element } from "./elements.js";
import { count, directionOf, scoreText } from "./table/values.js";

const MOST_USUAL = 12; // labels of a task that are shown unasked: ToxCast has 617
const MOST_FOUND = 300;

/** Return the labels that a table shows unasked: those of tasks that have few. */
export function usualLabels(catalogue) {
  const tasks = catalogue.tasks.filter((task) => task.labels.length <= MOST_USUAL);
  const usual = tasks.flatMap((task) => catalogue.of(task.name));
  return usual.length ? usual : [...catalogue.labels.values()].slice(0, MOST_USUAL);
}

/**
 * Let a person choose labels, and return those chosen, in the order of the catalogue; null if the
 * dialog was cancelled.
 */
export function chooseLabels(catalogue, chosen) {
  return new Dialog(catalogue, chosen).answer;
}

class Dialog {
  constructor(catalogue, chosen) {
    this.catalogue = catalogue;
    this.chosen = new Set(chosen.map((label) => label.column));
    this.search = element("input", {
      type: "search", id: "choice-search", placeholder: "Search: solubility, CYP3A4, estrogen …",
      autocomplete: "off", on: { input: () => this.draw() },
    });
    this.list = element("div", { className: "choices", tabIndex: 0, role: "group", aria: { label: "Properties by task" } });
    this.summary = element("span", { className: "soft", role: "status" });
    const button = (text, act) => element("button", { type: "button", className: "quiet", on: { click: act } }, text);
    const form = element(
      "form",
      { method: "dialog" },
      element("h2", { id: "choice-title" }, "Properties"),
      element("label", { for: "choice-search", className: "hidden" }, "Search properties"),
      this.search,
      element(
        "div",
        { className: "row" },
        button("Usual", () => this.#set(usualLabels(catalogue))),
        button("All", () => this.#set([...catalogue.labels.values()])),
        button("None", () => this.#set([])),
        this.summary,
      ),
      this.list,
      element(
        "div",
        { className: "actions" },
        element("button", { type: "button", on: { click: () => this.dialog.close() } }, "Cancel"),
        (this.use = element("button", { className: "primary", value: "use" }, "Use these")),
      ),
    );
    this.dialog = element("dialog", { className: "choice", aria: { labelledby: "choice-title" } }, form);
    document.body.append(this.dialog);
    this.draw();
    this.dialog.showModal();
    this.answer = new Promise((resolve) => {
      this.dialog.addEventListener("close", () => {
        this.dialog.remove();
        const labels = [...catalogue.labels.values()].filter(({ column }) => this.chosen.has(column));
        resolve(this.dialog.returnValue === "use" ? labels : null);
      });
    });
  }

  #set(labels) {
    this.chosen = new Set(labels.map((label) => label.column));
    this.draw();
  }

  draw() {
    const wanted = this.search.value.trim().toLowerCase();
    const shown = wanted ? this.#found(wanted) : this.catalogue.tasks.map((task) => this.#task(task));
    if (!shown.length) shown.push(element("p", { className: "soft" }, "No property has these words."));
    this.list.replaceChildren(...shown);
    this.#count();
  }

  #count() {
    this.summary.textContent = `${count(this.chosen.size)} of ${count(this.catalogue.labels.size)} chosen`;
    this.use.disabled = !this.chosen.size;
  }

  #found(wanted) {
    const words = wanted.split(/\s+/);
    const labels = [...this.catalogue.labels.values()].filter((label) => {
      const text = [label.column, label.title, label.meaning.measured, label.task.description]
        .join(" ")
        .toLowerCase();
      return words.every((word) => text.includes(word));
    });
    const shown = labels.slice(0, MOST_FOUND).map((label) => this.#label(label, true));
    const more = labels.length - shown.length;
    if (more > 0) shown.push(element("p", { className: "soft" }, `and ${count(more)} more: search for more words`));
    return shown;
  }

  #task(task) {
    const labels = this.catalogue.of(task.name);
    if (labels.length === 1) return this.#label(labels[0], true);
    const inside = element("div", { className: "inside" });
    const box = element("input", { type: "checkbox", aria: { label: `All of ${task.name}` } });
    const number = element("span", { className: "soft" });
    const show = () => {
      const chosen = labels.filter(({ column }) => this.chosen.has(column)).length;
      box.checked = chosen === labels.length;
      box.indeterminate = chosen > 0 && chosen < labels.length;
      number.textContent = `${chosen} of ${labels.length}`;
      this.#count();
    };
    const fill = () => inside.replaceChildren(...labels.map((label) => this.#label(label, false, show)));
    box.addEventListener("change", () => {
      for (const { column } of labels) {
        if (box.checked) this.chosen.add(column);
        else this.chosen.delete(column);
      }
      show();
      if (group.open) fill();
    });
    const group = element(
      "details",
      { on: { toggle: () => group.open && !inside.childElementCount && fill() } },
      element("summary", {}, element("span", { className: "name" }, task.name), number, element("span", { className: "soft about-task" }, task.description)),
      inside,
    );
    show();
    return element("div", { className: "task" }, box, group);
  }

  #label(label, withTask, onChange = () => this.#count()) {
    const { mark, text } = directionOf(label);
    const facts = [withTask && label.column, text && `${mark} ${text}`.trim(), label.unit, scoreText(label)];
    const box = element("input", {
      type: "checkbox",
      checked: this.chosen.has(label.column),
      on: {
        change: () => {
          if (box.checked) this.chosen.add(label.column);
          else this.chosen.delete(label.column);
          onChange();
        },
      },
    });
    return element(
      "label",
      { className: "one" },
      box,
      element(
        "span",
        {},
        element("span", { className: "name" }, label.title),
        element("span", { className: "soft" }, facts.filter(Boolean).join(" · ")),
        label.meaning.measured && element("span", { className: "soft measured" }, label.meaning.measured),
      ),
    );
  }
}
