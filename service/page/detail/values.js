// The values of a molecule: a row per label, of which one is chosen to be explained.
import { element } from "../elements.js";
import { valueOf } from "./answers.js";
import { strip } from "./charts.js";
import { answer, percent, sentence } from "./numbers.js";
import { labelAddress } from "./addresses.js";

const DIRECTIONS = {
  good: "high is good",
  bad: "high is bad",
  neither: "high is neither good nor bad",
};

/** Return the percentile of a label among drugs, 0 to 100; undefined where it is not known. */
export function percentileOf(item, label) {
  return item.drugs?.[label.task.name]?.[label.name];
}

/**
 * Return a table of values.
 *
 * Args: `choose` gets a label when the person chooses it; `chosen` is the first one.
 */
export function valueTable(item, labels, chosen, choose) {
  const drugs = labels.some((label) => percentileOf(item, label) !== undefined);
  const rows = labels.map((label) => {
    const pick = element("input", {
      type: "radio", name: "explained", checked: label === chosen, on: { change: () => choose(label) },
    });
    const name = element("label", {}, pick, element("span", {}, sentence(label.title), taskOf(label)));
    return element(
      "tr",
      {},
      element("th", { scope: "row" }, name),
      element("td", { className: "answer" }, answer(label, valueOf(item, label)), unitOf(label)),
      drugs ? element("td", { className: "percentile" }, ...among(percentileOf(item, label))) : null,
    );
  });
  const heads = ["Explain", "Answer", ...(drugs ? ["Among drugs"] : [])];
  return element(
    "table",
    { className: "values" },
    element("thead", {}, element("tr", {}, heads.map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, rows),
  );
}

function taskOf(label) {
  return element("small", {}, label.task.name);
}

function unitOf(label) {
  return label.unit ? element("small", {}, ` ${label.unit}`) : null;
}

/** Return a small line on a percentile; null where it is not known. */
export function amongDrugs(percentile) {
  if (percentile === undefined) return null;
  return element("small", { className: "under" }, `above ${percent(percentile / 100)} of drugs`);
}

function among(percentile) {
  if (percentile === undefined) return ["–"];
  return [strip(percentile / 100), element("small", {}, `above ${percent(percentile / 100)}`)];
}

/** Return what a person should know of a label, in a few lines. */
export function labelCard(label) {
  const { measured, one, direction, scores } = label.meaning;
  const lines = [];
  if (measured) lines.push(element("p", {}, measured));
  const facts = [];
  if (label.isProbability) facts.push(one ? `The answer is the probability of “${one}”` : "The answer is a probability");
  else facts.push(label.unit ? `The answer is in ${label.unit}` : "The answer is a number");
  if (direction) facts.push(DIRECTIONS[direction]);
  if (scores?.length) facts.push(scoreText(scores[0]));
  lines.push(element("p", { className: "note" }, `${facts.join("; ")}.`));
  lines.push(element("a", { href: labelAddress(label) }, `All facts of ${label.title}`));
  return element("div", { className: "label-card" }, lines);
}

const METRICS = {
  roc_auc: "ROC-AUC", auprc: "AUPRC", recall: "recall", mae: "mean absolute error",
  spearman: "rank correlation", forces_mae: "mean absolute error of forces",
};

/** Return the name of a score. */
export function metricTitle(metric) {
  return METRICS[metric] ?? metric;
}

/** Write a score with its interval. */
export function scoreText({ metric, value, low, high, unit }) {
  const number = (score) => score.toPrecision(2).replace("-", "−");
  const ends = `${number(low)} to ${number(high)}`;
  return `${metricTitle(metric)} on test molecules ${number(value)} (${ends})${unit ? ` ${unit}` : ""}`;
}

/** Say what direction is good. */
export function directionText(direction) {
  return DIRECTIONS[direction] ?? "";
}
