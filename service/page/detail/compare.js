// Two to six molecules side by side.
import { element } from "../elements.js";
import { compareAddress, labelAddress } from "./addresses.js";
import { Inquiry, offered, tasksOf, valueOf } from "./answers.js";
import { printable } from "./drawing.js";
import { answer } from "./numbers.js";
import { failure, note } from "./section.js";
import { amongDrugs, percentileOf } from "./values.js";

export const MOST_COMPARED = 6;

/**
 * Show molecules side by side.
 *
 * Args: as of `openMolecule`; `molecules` are two to six, further ones are left out.
 */
export function openCompare(molecules, labels) {
  location.hash = compareAddress(molecules.slice(0, MOST_COMPARED), labels);
}

/** Return the title and the elements of a comparison. */
export function comparePage(fields, catalogue) {
  const smiles = fields.getAll("smiles").slice(0, MOST_COMPARED);
  const names = fields.getAll("name");
  const molecules = smiles.map((text, k) => ({ smiles: text, name: names[k] || `Molecule ${k + 1}` }));
  const labels = fields.getAll("show").map((column) => catalogue.labels.get(column)).filter(Boolean);
  const title = `Comparison of ${molecules.length} molecules`;
  if (molecules.length < 2 || !labels.length) {
    return { title, parts: [note("Choose two to six molecules, and labels, to compare.")] };
  }
  const inquiry = new Inquiry(smiles);
  const body = element("div", { aria: { busy: "true" } }, note("Asking the service …"));
  body.renew = () => fill(body, inquiry, molecules, labels);
  body.renew();
  return { title, parts: [body], tools: [printButton()], stop: () => inquiry.close() };
}

/** A button that prints the page. */
export function printButton() {
  return element("button", { type: "button", on: { click: () => print() } }, "Print");
}

async function fill(body, inquiry, molecules, labels) {
  try {
    const question = { tasks: tasksOf(labels), explain: offered(["drugs"], labels) };
    const { items } = await inquiry.ask(question);
    body.replaceChildren(...compared(items, molecules, labels));
  } catch (error) {
    const parts = failure(error, body);
    if (parts) body.replaceChildren(...parts);
  }
  body.removeAttribute("aria-busy");
}

function compared(items, molecules, labels) {
  const rows = labels.map((label) => ({ label, ...rowOf(items, label) }));
  const tbody = element("tbody", {}, rows.map((row) => row.made));
  const sort = element("input", {
    type: "checkbox",
    id: "compare-sort",
    on: {
      change: () => {
        const ordered = sort.checked ? [...rows].sort((a, b) => b.difference - a.difference) : rows;
        tbody.replaceChildren(...ordered.map((row) => row.made));
      },
    },
  });
  const heads = molecules.map(({ smiles, name }, k) =>
    element(
      "th",
      { scope: "col" },
      items[k].error ? null : printable(smiles, { width: 180, height: 130, alt: `Structure of ${name}` }),
      element("span", { className: "compare-name" }, name),
    ),
  );
  const table = element(
    "table",
    { className: "compare" },
    element("thead", {}, element("tr", {}, element("td"), heads)),
    tbody,
  );
  return [
    element("div", { className: "line-field no-print" }, sort, element("label", { for: "compare-sort" }, "Largest differences first")),
    note("▲ marks the highest answer of a row and ▼ the lowest, where they differ as written."),
    element("div", { className: "scroll", tabIndex: 0, role: "region", aria: { label: "Comparison" } }, table),
  ];
}

/** The row of a label, and how far its answers are apart: in probability, or standard deviations. */
function rowOf(items, label) {
  const values = items.map((item) => (item.error ? null : valueOf(item, label)));
  const known = values.filter((value) => value !== null);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const differs = known.length > 1 && answer(label, low) !== answer(label, high);
  const cells = values.map((value, k) => {
    if (value === null) return element("td", {}, items[k].error.message);
    const kind = differs && value === high ? "high" : differs && value === low ? "low" : "";
    const mark = { high: ["▲ ", "highest"], low: ["▼ ", "lowest"] }[kind];
    const percentile = percentileOf(items[k], label);
    return element(
      "td",
      { className: kind },
      mark ? element("span", { aria: { hidden: "true" } }, mark[0]) : null,
      answer(label, value),
      mark ? element("span", { className: "hidden" }, ` ${mark[1]}`) : null,
      amongDrugs(percentile),
    );
  });
  const unit = label.unit ? `, ${label.unit}` : "";
  const name = element("a", { href: labelAddress(label) }, label.title);
  const head = element("th", { scope: "row" }, name, element("small", { className: "under" }, label.task.name + unit));
  const scale = label.isProbability ? 1 : (label.meaning.distribution?.deviation ?? (Math.abs(high) || 1));
  return { made: element("tr", {}, head, cells), difference: known.length ? (high - low) / scale : 0 };
}
