// Search, substructure and ranges of numbers: which rows of the table are shown.
import { post } from "../api.js";
import { element } from "../elements.js";
import { patiently } from "../run/chunks.js";

const MOST_AT_ONCE = 500;
const TYPING = 250;

/** The bar of filters above the table. */
export class Filters {
  /**
   * Args: `bar` and `ranges` are the elements to fill; `view` has the filters; `limits` are those
   * of the service; `onChange` is called after a change of the view, `onMatch` when more rows are
   * known to have a substructure.
   */
  constructor(bar, ranges, { view, limits, onChange, onMatch }) {
    Object.assign(this, { bar, ranges, view, limits, onChange, onMatch });
    this.matched = null; // the rows that have the substructure; null if none is asked for
    this.tested = null; // the rows in which it was looked for
    this.results = null;
    this.labels = [];
    this.#build();
  }

  #build() {
    this.text = element("input", {
      type: "search", id: "search", placeholder: "Search", value: this.view.text, autocomplete: "off",
      on: { input: soon(() => this.#searched()) },
    });
    this.smarts = element("input", {
      type: "search", id: "smarts", placeholder: "SMARTS: C(=O)N", value: this.view.smarts,
      spellcheck: false, autocapitalize: "off", autocomplete: "off", className: "mono",
      aria: { describedby: "smarts-error" },
      on: { input: soon(() => this.#smartsChanged()) },
    });
    this.problem = element("span", { className: "bad", id: "smarts-error", role: "alert" });
    this.substructures = element(
      "span",
      { className: "labelled", hidden: true },
      element("label", { for: "smarts", className: "hidden" }, "Substructure, as SMARTS"),
      this.smarts,
      this.problem,
    );
    const add = element("button", { type: "button", id: "add-filter", on: { click: () => this.#add() } }, "Filter numbers");
    this.bar.replaceChildren(
      element("span", { className: "labelled" }, element("label", { for: "search", className: "hidden" }, "Search names, SMILES and cells"), this.text),
      this.substructures,
      add,
    );
  }

  /** Show or hide the field of substructures. */
  offerSubstructures(isOffered) {
    this.substructures.hidden = !isOffered;
    if (!isOffered || !this.view.smarts) return;
    this.#startMatching();
    this.onMatch();
  }

  /** Choose among these labels, and the columns of these results. */
  show(results, labels) {
    Object.assign(this, { results, labels });
    this.#drawRanges();
  }

  /** Other molecules: what matched before says nothing of them. */
  forgetMatches() {
    this.#startMatching();
  }

  #searched() {
    this.view.text = this.text.value;
    this.onChange();
  }

  #smartsChanged() {
    this.view.smarts = this.smarts.value.trim();
    this.#startMatching();
    this.onChange();
  }

  #startMatching() {
    this.matching?.abort();
    this.matching = null;
    this.#complain("");
    const isAsked = this.view.smarts && !this.substructures.hidden;
    [this.matched, this.tested] = isAsked ? [new Set(), new Set()] : [null, null];
  }

  /** Look for the substructure in rows that were answered since. */
  async matchNew() {
    if (this.matched === null || this.matching || !this.results) return;
    const { results, tested, matched } = this;
    const rows = [];
    for (let row = 0; row < results.count; row += 1) {
      if (results.isAnswered(row) && !tested.has(row)) rows.push(row);
    }
    if (!rows.length) return;
    const { signal } = (this.matching = new AbortController());
    try {
      for await (const { row, has } of matching(results, rows, this.view.smarts, { limits: this.limits, signal })) {
        tested.add(row);
        if (has) matched.add(row);
      }
      this.matching = null;
      this.onMatch();
    } catch (error) {
      // What cannot be searched for is not searched for again; its field says why.
      if (error.name !== "AbortError") this.#complain(error.message);
    }
  }

  #complain(message) {
    this.problem.textContent = message;
    this.smarts.setAttribute("aria-invalid", String(message !== ""));
  }

  #add() {
    const [first] = this.labels;
    if (!first) return;
    this.view.filters.push({ column: first.column, min: null, max: null });
    this.#drawRanges();
    this.ranges.lastElementChild.querySelector("select").focus();
  }

  #drawRanges() {
    const ranges = this.view.filters.map((filter) => this.#range(filter));
    this.ranges.replaceChildren(...ranges);
  }

  #range(filter) {
    const uploaded = this.results?.columns.filter((_, k) => k !== this.results.molecule) ?? [];
    const choice = element(
      "select",
      { aria: { label: "Property" }, on: { change: () => this.#set(filter, { column: choice.value }) } },
      ...this.labels.map((label) => element("option", { value: label.column }, label.unit ? `${label.title} [${label.unit}]` : label.title)),
      ...uploaded.map((name) => element("option", { value: `upload:${name}` }, name)),
    );
    choice.value = filter.column;
    const end = (name, words) => {
      const field = element("input", {
        type: "number", step: "any", value: filter[name] ?? "", placeholder: words, aria: { label: words },
        on: { input: soon(() => this.#set(filter, { [name]: field.value === "" ? null : Number(field.value) })) },
      });
      return field;
    };
    const remove = () => {
      this.view.filters.splice(this.view.filters.indexOf(filter), 1);
      this.#drawRanges();
      this.onChange();
    };
    const button = element("button", { type: "button", className: "quiet", aria: { label: "Remove this filter" }, on: { click: remove } }, "✕");
    return element("span", { className: "range" }, choice, end("min", "from"), end("max", "to"), button);
  }

  #set(filter, values) {
    Object.assign(filter, values);
    this.onChange();
  }
}

/** Return a listener that acts once nobody has typed for a while. */
function soon(act) {
  let typing;
  return () => {
    clearTimeout(typing);
    typing = setTimeout(act, TYPING);
  };
}

async function* matching(results, rows, smarts, { limits, signal }) {
  const step = Math.min(MOST_AT_ONCE, limits.max_molecules);
  for (let begin = 0; begin < rows.length; begin += step) {
    const chunk = rows.slice(begin, begin + step);
    const body = { smiles: chunk.map((row) => results.smiles[row]), smarts };
    const { matches } = await patiently(() => post("match", body, { signal }), { signal });
    for (const item of matches) yield { row: chunk[item.index], has: item.matches ?? false };
  }
}
