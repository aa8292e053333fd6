// The panel of one molecule.
import { byId, element } from "../elements.js";
import { reportAddress } from "./addresses.js";
import { Inquiry, offered, tasksOf } from "./answers.js";
import { drawing } from "./drawing.js";
import { failure, note, section } from "./section.js";
import { labelCard, valueTable } from "./values.js";

const SHEET = matchMedia("(max-width: 69.99rem)"); // where it covers the page
let current = null;

/**
 * Show the panel of a molecule.
 *
 * Args:
 *   molecule: { smiles, text, name, cells } - canonical SMILES, the text as it was given, and the
 *     columns of the upload by name.
 *   labels: the labels that the table shows, of the `Catalogue`.
 *   catalogue: the `Catalogue`.
 */
export function openMolecule(molecule, labels, catalogue) {
  const from = current?.from ?? document.activeElement;
  current?.inquiry.close();
  current = new Panel(molecule, labels, catalogue, from);
  current.show();
}

/** Hide the panel, and give the focus back to where it was opened from. */
export function closeMolecule() {
  if (!current) return;
  const { inquiry, from } = current;
  current = null;
  inquiry.close();
  const panel = byId("panel");
  panel.hidden = true;
  panel.replaceChildren();
  panel.parentElement.classList.remove("with-panel");
  coverRest();
  // the table may have drawn its rows anew; then its current cell
  const cell = from?.isConnected ? from : byId("molecules").querySelector("tbody [tabindex='0']");
  (cell ?? byId("molecules")).focus();
}

/** Where the panel covers the page, nothing behind it can be reached. */
function coverRest() {
  const covered = current !== null && SHEET.matches;
  const panel = byId("panel");
  for (const one of [...document.body.children, ...panel.parentElement.children]) {
    if (!one.contains(panel)) one.inert = covered;
  }
}

SHEET.addEventListener("change", coverRest);
byId("panel").addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  event.stopPropagation();
  closeMolecule();
});

class Panel {
  constructor(molecule, labels, catalogue, from) {
    Object.assign(this, { molecule, labels, catalogue, from });
    this.inquiry = new Inquiry(molecule.smiles);
    this.chosen = labels[0];
    this.answers = element("div", { className: "answers", aria: { busy: "true" } });
    this.card = element("div");
  }

  show() {
    const panel = byId("panel");
    panel.hidden = false;
    panel.parentElement.classList.add("with-panel");
    coverRest();
    this.sections = this.#sections();
    panel.replaceChildren(
      this.#head(),
      element("figure", { className: "figure" }, this.#picture()),
      element("p", { className: "smiles mono" }, this.molecule.smiles),
      this.#columns(),
      this.answers,
      this.card,
      ...this.sections,
    );
    panel.scrollTop = 0;
    panel.focus({ preventScroll: !SHEET.matches });
    this.#answer();
  }

  get title() {
    return this.molecule.name || this.molecule.text || this.molecule.smiles;
  }

  #picture() {
    return drawing(this.molecule.smiles, { width: 460, height: 300, alt: `Structure of ${this.title}` });
  }

  #head() {
    const close = element(
      "button",
      { type: "button", className: "quiet", aria: { label: "Close the panel" }, on: { click: closeMolecule } },
      "✕",
    );
    const report = element("a", { className: "button", href: reportAddress(this.molecule, this.labels) }, "Report");
    return element("header", { className: "panel-head" }, element("h2", {}, this.title), report, close);
  }

  /** The columns of the upload. */
  #columns() {
    const cells = Object.entries(this.molecule.cells ?? {});
    if (!cells.length) return "";
    const facts = cells.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]);
    return element(
      "details",
      { className: "section" },
      element("summary", {}, element("h3", {}, "What came with it")),
      element("dl", { className: "fact-list section-body" }, facts),
    );
  }

  async #answer() {
    if (!this.labels.length) {
      this.answers.replaceChildren(note("Choose tasks or labels to see what the model answers."));
      return;
    }
    const made = this.answers;
    made.renew = () => this.#answer();
    try {
      const explain = offered(["drugs"], this.labels);
      const { item } = await this.inquiry.askOne({ tasks: tasksOf(this.labels), explain });
      const choose = (label) => this.#choose(label);
      made.replaceChildren(valueTable(item, this.labels, this.chosen, choose));
      this.card.replaceChildren(labelCard(this.chosen));
    } catch (error) {
      const parts = failure(error, made);
      if (parts) made.replaceChildren(...parts);
    }
    made.removeAttribute("aria-busy");
  }

  #choose(label) {
    this.chosen = label;
    this.card.replaceChildren(labelCard(label));
    for (const one of this.sections) one.renew?.();
  }

  /** The sections that the model offers for a task of the labels, and a line on the others. */
  #sections() {
    const offers = SECTIONS.filter(({ name }) => offered([name], this.labels).length);
    const missing = SECTIONS.filter((one) => !offers.includes(one)).map(({ title }) => `“${title}”`);
    const made = offers.map(({ title, name, load }) => section(title, name, () => this.#explain(name, load)));
    if (missing.length) made.push(note(`This model does not offer ${missing.join(" and ")} for these labels.`));
    return made;
  }

  async #explain(name, load) {
    const { inquiry, chosen, labels, catalogue } = this;
    if (!offered([name], [chosen]).length) return [note(`The model has nothing on this for ${chosen.task.name}.`)];
    const explain = await load();
    return explain({ inquiry, label: chosen, labels, catalogue });
  }
}

// What shows a section is loaded when it is opened.
const SECTIONS = [
  { title: "Which atoms", name: "atoms", load: async () => (await import("./atoms.js")).explainAtoms },
  { title: "How far to trust it", name: "domain", load: async () => (await import("./trust.js")).explainTrust },
  { title: "Structural alerts", name: "alerts", load: async () => (await import("./alerts.js")).explainAlerts },
  { title: "Who answers", name: "experts", load: async () => (await import("./experts.js")).explainExperts },
];
