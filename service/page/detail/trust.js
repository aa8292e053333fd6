// How far to trust: the nearest training molecules, and what was measured on molecules like them.
import { element } from "../elements.js";
import { explanationOf, valueOf } from "./answers.js";
import { level } from "./charts.js";
import { drawing } from "./drawing.js";
import { answer, count, fixed, percent, written } from "./numbers.js";
import { note } from "./section.js";

const METRICS = { roc_auc: "ROC-AUC", mae: "mean absolute error" };

/** Return the elements that say how far an answer can be trusted. */
export async function explainTrust({ inquiry, label }) {
  const { item } = await inquiry.askOne({
    tasks: [label.task.name],
    explain: ["domain"],
    explain_labels: [label.column],
  });
  const domain = explanationOf(item, "domain")[label.task.name];
  const measured = domain.labels[label.name] ?? {};
  return [
    element("h4", {}, "Nearest training molecules"),
    nearest(domain.nearest, label),
    element("h4", {}, "Measured on molecules about as similar"),
    ...band(measured.band, label),
    element("h4", {}, "What can be excluded"),
    ...conformal(measured.conformal, label, valueOf(item, label)),
    ...spread(measured.spread, label),
  ];
}

function nearest(molecules, label) {
  const cards = molecules.map((one) => {
    const value = one.values?.[label.name];
    const measured = value === undefined ? null : `measured: ${outcome(label, value)}`;
    const what = one.smiles
      ? drawing(one.smiles, { width: 150, height: 110, alt: `Training molecule ${one.smiles}` })
      : element("span", { className: "no-picture" }, "structure not shown");
    return element(
      "li",
      {},
      what,
      element("span", {}, `similarity ${fixed(one.similarity, 2)}`, level(one.similarity)),
      measured === null ? null : element("span", {}, measured),
      element("span", { className: "soft" }, `row ${one.row} of the data`),
    );
  });
  const list = element("ul", { className: "neighbours" }, cards);
  const hidden = molecules.some((one) => !one.smiles);
  const why =
    "Structures are shown where the terms of the data allow it and the operator has the data.";
  const known =
    "A training molecule has the same fingerprint, and may be this one: its measured value says " +
    "more than the answer.";
  return element("div", {}, list, molecules[0]?.similarity === 1 ? note(known, "warn") : null, hidden ? note(why) : null);
}

/** Return sentences on the error at this similarity, and in short form its verdict. */
export function bandWords(measured, label) {
  const { from, to, molecules, metric, score, error, error_of_base: base } = measured;
  const unit = label.unit ? ` ${label.unit}` : "";
  const errors = label.isProbability
    ? `Brier score ${fixed(error)}, against ${fixed(base)} for always answering the base rate`
    : `mean absolute error ${written(error)}${unit}, against ${written(base)}${unit} for always ` +
      "answering the same";
  const range = `similarity ${fixed(from, 2)} to ${fixed(to, 2)}, ${count(molecules, "molecule")}`;
  const ranked = metric === "mae" ? "" : `${METRICS[metric] ?? metric} ${fixed(score, 2)}; `;
  return { text: `At this distance (${range}): ${ranked}${errors}.`, useless: error >= base };
}

function band(measured, label) {
  if (!measured) return [note("Too few molecules were measured at this similarity.")];
  const { text, useless } = bandWords(measured, label);
  const largest = Math.max(measured.error, measured.error_of_base);
  const line = (name, value) =>
    element("div", { className: "pair" }, element("span", {}, name), level(value / largest), written(value));
  return [
    element("p", {}, text),
    element(
      "div",
      { className: "pairs" },
      line("error here", measured.error),
      line("without a model", measured.error_of_base),
    ),
    useless
      ? note("At this distance the answer was no better than the base rate: do not rely on it.", "warn")
      : null,
  ].filter(Boolean);
}

function conformal(found, label, value) {
  if (!found) {
    return [note("No set is given: there were too few molecules, or its coverage did not hold.")];
  }
  const sure = percent(found.confidence);
  return [
    element("p", {}, `At ${sure} confidence: ${setWords(found, label)}. The answer is ${answer(label, value)}.`),
    note(`Measured coverage on test molecules of other scaffolds: ${coverageWords(found, label)}.`),
  ];
}

/** Say which outcomes remain. */
export function setWords({ set, interval }, label) {
  const unit = label.unit ? ` ${label.unit}` : "";
  if (interval) return `between ${written(interval[0])} and ${written(interval[1])}${unit}`;
  if (set.length > 1) return "neither outcome can be excluded";
  if (set.length === 0) return "unlike both classes";
  return outcome(label, set[0]);
}

function coverageWords({ coverage }, label) {
  const names = Object.keys(coverage);
  return names
    .map((name) => (names.length > 1 ? `${outcome(label, Number(name))}: ` : "") + percent(coverage[name]))
    .join("; ");
}

/** Say what a measured value means. */
export function outcome(label, value) {
  if (!label.isProbability) return `${written(value)}${label.unit ? ` ${label.unit}` : ""}`;
  const one = label.meaning.one ?? `${label.title}: 1`;
  return value === 1 ? one : `not “${one}”`;
}

function spread(value, label) {
  if (value === undefined) return [];
  const unit = label.isProbability ? "log-odds" : (label.unit ?? "units");
  const text = `Network and trees differ by ${written(value)} ${unit}.`;
  return [element("h4", {}, "Network against trees"), element("p", {}, text)];
}
