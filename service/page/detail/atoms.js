// Which atoms: the contributions of atoms to one answer, and how they add up.
import { element } from "../elements.js";
import { explanationOf, valueOf } from "./answers.js";
import { bar } from "./charts.js";
import { drawing, redraw } from "./drawing.js";
import { answer, fixed, percent, probability, signed } from "./numbers.js";
import { note } from "./section.js";
import { groupsOf, placesOf, readStructure } from "./structure.js";

const MOST_ROWS = 8;
const SIZE = { width: 460, height: 300 };
// From an answer to what its contributions are counted in.
const LEAST = 1e-8; // as answers are rounded
const logOdds = (p) => Math.log(Math.max(p, LEAST) / Math.max(1 - p, LEAST));
const SCALES = {
  log_odds: logOdds,
  logit: logOdds,
  value: (value) => value,
  log10_value: Math.log10,
};
const EXPERTS = { own: "network", forest: "trees" };

/** Return the elements that explain a label of a molecule by its atoms. */
export async function explainAtoms({ inquiry, label, catalogue }) {
  const { item } = await inquiry.askOne({
    tasks: [label.task.name],
    explain: ["atoms"],
    explain_labels: [label.column],
  });
  const explained = explanationOf(item, "atoms")[label.task.name][label.name];
  const rounds = catalogue.model.backbone.num_layers;
  return new AtomView(inquiry, label, item, explained).elements(evidence(rounds));
}

function evidence(rounds) {
  return (
    `Contributions say where the model's evidence lies after ${rounds} rounds of exchange with neighbours, ` +
    "not which atom causes it: an atom carries what the network read around it. “Without it” is the " +
    "check: a second prediction, of the molecule without these atoms."
  );
}

class AtomView {
  constructor(inquiry, label, item, explained) {
    Object.assign(this, { inquiry, label, item, explained });
    this.structure = readStructure(item.smiles);
    this.groups = groupsOf(this.structure);
    this.names = Object.keys(explained.experts);
    this.shown = this.names;
    this.byGroup = true;
  }

  /** The contributions of the atoms, of the experts that are shown. */
  get weights() {
    return sums(this.shown.map((name) => this.explained.experts[name].atoms));
  }

  /** What is shown; `words` say how to read it. */
  elements(words) {
    this.picture = drawing(this.item.smiles, { ...SIZE, weights: this.weights, alt: this.#alt() });
    this.rows = element("tbody");
    this.caption = element("span");
    const table = element(
      "table",
      { className: "bars" },
      element("caption", {}, this.caption),
      element("thead", {}, heads("Where", "Atoms", "Contribution", "")),
      this.rows,
    );
    this.#list();
    return [
      element("p", { className: "lead" }, this.#sentence()),
      element("div", { className: "switches" }, this.#expertSwitch(), this.#groupSwitch()),
      element("figure", { className: "figure" }, this.picture, element("figcaption", {}, legend())),
      table,
      note(words),
      element("h4", {}, "How it adds up"),
      sumTable(this.label, this.explained),
      ...this.#bits(),
    ].filter(Boolean);
  }

  #sentence() {
    const { label, explained } = this;
    const value = answer(label, valueOf(this.item, label));
    const best = this.#parts()[0];
    const way = best.value < 0 ? "lowers" : "raises";
    const share = `${signed(best.value, 2)} ${unitOf(label, explained)}`;
    return `The answer is ${value}. What ${way} it most: ${best.name}, atoms ${placesOf(best.atoms)}, by ${share}.`;
  }

  /** Contributions by group or by atom, the largest first. */
  #parts() {
    const weights = this.weights;
    const parts = this.byGroup
      ? this.groups
      : this.structure.atoms.map((atom, a) => ({ name: atom.element, atoms: [a] }));
    return parts
      .map((one) => ({ ...one, value: one.atoms.reduce((sum, a) => sum + weights[a], 0) }))
      .sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
  }

  #list() {
    const parts = this.#parts();
    const top = parts.slice(0, MOST_ROWS);
    const rest = parts.slice(MOST_ROWS);
    const largest = Math.abs(top[0].value);
    const unit = unitOf(this.label, this.explained);
    const what = this.byGroup ? "groups" : "atoms";
    this.caption.textContent = `Contributions of ${what}, in ${unit}, of ${this.#who()}`;
    this.rows.replaceChildren(...top.map((one) => this.#row(one, largest)));
    if (rest.length) {
      const sum = rest.reduce((total, one) => total + one.value, 0);
      const name = `${rest.length} further ${what}`;
      this.rows.append(element("tr", {}, ...cells(name, "", sum, largest), element("td")));
    }
  }

  #row(one, largest) {
    const name = `${one.name}, atoms ${placesOf(one.atoms)}`;
    const remove = element(
      "button",
      { type: "button", className: "quiet", aria: { label: `Predict without ${name}`, expanded: "false" } },
      "Without it",
    );
    const row = element(
      "tr",
      {
        on: {
          mouseenter: () => this.#light(one),
          mouseleave: () => this.#light(null),
          focusin: () => this.#light(one),
          focusout: () => this.#light(null),
        },
      },
      ...cells(one.name, placesOf(one.atoms), one.value, largest),
      element("td", {}, remove),
    );
    remove.addEventListener("click", () => this.#remove(one, row, remove));
    if (one.atoms.length === this.structure.atoms.length) remove.disabled = true;
    return row;
  }

  /** Predict the molecule without these atoms, and show below their row what changes. */
  async #remove(one, row, button) {
    const isOpen = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", String(!isOpen));
    if (isOpen) {
      row.nextElementSibling.remove();
      return;
    }
    const shown = element("td", { colSpan: 4, role: "status" }, "Asking the service …");
    row.after(element("tr", { className: "removed" }, shown));
    try {
      const question = { tasks: [this.label.task.name], without_atoms: [one.atoms] };
      const { item } = await this.inquiry.askOne(question);
      shown.replaceChildren(...this.#comparison(one, item));
    } catch (error) {
      if (error.name !== "AbortError") shown.replaceChildren(note(`That did not work: ${error.message}.`, "bad"));
    }
  }

  #comparison(one, without) {
    const { label, item, explained } = this;
    const [before, after] = [valueOf(item, label), valueOf(without, label)];
    const scale = SCALES[explained.scale];
    const change = scale(after) - scale(before);
    const whole = one.atoms.reduce((sum, a) => sum + this.#total[a], 0);
    const text =
      `Without it: ${answer(label, after)} in place of ${answer(label, before)}, ` +
      `${signed(change, 2)} ${unitOf(label, explained)}. Evidence on these atoms: ${signed(whole, 2)}.`;
    const alt = `The molecule without it, ${without.smiles}`;
    return [drawing(without.smiles, { width: 150, height: 100, alt }), element("p", {}, text)];
  }

  /** The contributions of the atoms, of all experts. */
  get #total() {
    return sums(this.names.map((name) => this.explained.experts[name].atoms));
  }

  /** Colour these atoms alone; null colours all by their contribution. */
  #light(one) {
    const sign = one?.value < 0 ? -1 : 1;
    const weights = one
      ? this.structure.atoms.map((_, a) => (one.atoms.includes(a) ? sign : 0))
      : this.weights;
    redraw(this.picture, this.item.smiles, { ...SIZE, weights });
  }

  #alt() {
    const parts = this.#parts().slice(0, 3);
    const said = parts.map((one) => `${one.name} ${signed(one.value, 2)}`).join(", ");
    return `The molecule, its atoms coloured by their contributions; the largest: ${said}`;
  }

  #show() {
    this.#list();
    this.picture.alt = this.#alt();
    this.#light(null);
  }

  #who() {
    return this.shown.map((name) => EXPERTS[name]).join(" and ");
  }

  #expertSwitch() {
    if (this.names.length < 2) return null;
    const choices = [["network and trees", this.names], ["network", ["own"]], ["trees", ["forest"]]];
    return choice("Part of", choices, (names) => {
      this.shown = names;
      this.#show();
    });
  }

  #groupSwitch() {
    return choice("By", [["group", true], ["atom", false]], (byGroup) => {
      this.byGroup = byGroup;
      this.#show();
    });
  }

  #bits() {
    const bits = this.explained.experts.forest?.bits ?? [];
    if (!bits.length) return [];
    const largest = Math.max(...bits.map((bit) => Math.abs(bit.contribution)));
    const rows = bits.map((bit) => {
      const one = { atoms: bit.atoms, value: bit.contribution };
      const where = bit.atoms.length ? placesOf([...bit.atoms].sort((a, b) => a - b)) : "none";
      const row = element("tr", {}, ...cells(bit.name, where, bit.contribution, largest));
      if (bit.atoms.length) {
        row.tabIndex = 0;
        row.addEventListener("mouseenter", () => this.#light(one));
        row.addEventListener("mouseleave", () => this.#light(null));
        row.addEventListener("focus", () => this.#light(one));
        row.addEventListener("blur", () => this.#light(null));
      }
      return row;
    });
    const table = element(
      "table",
      { className: "bars" },
      element("thead", {}, heads("Bit or descriptor", "Atoms", "Contribution")),
      element("tbody", {}, rows),
    );
    return [element("h4", {}, "What the trees asked for"), table];
  }
}

/** Return the sum of lists of equal length, element by element. */
function sums(lists) {
  return lists[0].map((_, k) => lists.reduce((sum, list) => sum + list[k], 0));
}

function total(list) {
  return list.reduce((sum, one) => sum + one, 0);
}

function heads(...names) {
  return element(
    "tr",
    {},
    names.map((name) => element(name ? "th" : "td", name ? { scope: "col" } : {}, name)),
  );
}

function cells(name, where, value, largest) {
  return [
    element("th", { scope: "row" }, name),
    element("td", { className: "places" }, where),
    element("td", { className: "amount" }, bar(value, largest), element("span", {}, signed(value))),
  ];
}

/** What the contributions are counted in. */
function unitOf(label, { scale }) {
  if (scale === "log_odds" || scale === "logit") return scale.replace("_", "-");
  const unit = label.unit ?? "units of the answer";
  return scale === "log10_value" ? `log10 of ${unit}` : unit;
}

/** The colours in words. */
function legend() {
  return [
    element("span", { className: "swatch up" }), "vermilion raises the answer, ",
    element("span", { className: "swatch down" }), "blue lowers it",
  ];
}

/** A table whose last lines are the sum of those above, and the answer. */
function sumTable(label, explained) {
  const lines = [["Baseline", explained.baseline]];
  for (const [name, expert] of Object.entries(explained.experts)) {
    const weight = expert.weight < 1 ? `, weight ${percent(expert.weight)}` : "";
    lines.push([`Atoms, ${EXPERTS[name]}${weight}`, total(expert.atoms)]);
    if (name === "forest") lines.push(["Bits and descriptors without atoms, trees", expert.other]);
  }
  const row = ([name, value], kind = "") =>
    element(
      "tr",
      { className: kind },
      element("th", { scope: "row" }, name),
      element("td", {}, kind === "sum" ? fixed(value) : signed(value)),
    );
  const sum = lines.reduce((all, line) => all + line[1], 0);
  const rows = lines.map((line) => row(line));
  rows.push(row([`Sum: ${unitOf(label, explained)}`, sum], "sum"));
  if (explained.scale === "log_odds") {
    rows.push(row(["Probability: 1 / (1 + exp(−sum))", probability(sum)], "sum"));
  } else if (explained.scale === "log10_value") {
    rows.push(row([`Answer: 10 to the sum, ${label.unit ?? ""}`, 10 ** sum], "sum"));
  }
  return element("table", { className: "sums" }, element("tbody", {}, rows));
}

/** A group of radio buttons; `choose` gets the value of the chosen one. */
function choice(title, options, choose) {
  const name = `choice-${title}`;
  const made = options.map(([text, value], k) =>
    element(
      "label",
      {},
      element("input", { type: "radio", name, checked: k === 0, on: { change: () => choose(value) } }),
      element("span", {}, text),
    ),
  );
  return element("fieldset", { className: "switch" }, element("legend", {}, title), made);
}
