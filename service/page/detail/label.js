// The page of a label: what it means, how many molecules have it, how well it is predicted.
import { element } from "../elements.js";
import { labelAddress } from "./addresses.js";
import { interval } from "./charts.js";
import { count, fixed, percent, sentence, written } from "./numbers.js";
import { note } from "./section.js";
import { directionText, metricTitle } from "./values.js";

const EXPERTS = { own: "the network", forest: "trees on fingerprints", both: "network and trees, their mean" };
const INPUTS = { ecfp4: "circular fingerprints (ECFP4)", descriptors: "descriptors of RDKit" };
const BETWEEN_0_AND_1 = new Set(["roc_auc", "auprc", "recall"]);

/** Return the title and the elements of the page of a label. */
export function labelPage(fields, catalogue) {
  const column = fields.get("label");
  const label = catalogue.labels.get(column);
  if (!label) return { title: "Unknown label", parts: [note(`The model has no label ${column}.`, "bad")] };
  const { task, meaning } = label;
  const parts = [
    element("p", { className: "lead" }, meaning.measured ?? task.description),
    element("dl", { className: "fact-list" }, facts(label).flatMap(fact)),
  ];
  if (meaning.counts) parts.push(element("h2", {}, "Data"), counts(meaning), ...distribution(label));
  if (meaning.scores?.length) parts.push(element("h2", {}, "How well it is predicted"), scores(meaning), ...calibration(meaning));
  else if (meaning.counts) parts.push(note("The test molecules do not allow a score: they are too few, or all of one kind."));
  if (task.meaning) {
    const origin = [["Source", task.meaning.source], ["Terms", task.meaning.terms]];
    parts.push(element("h2", {}, "Origin"), element("dl", { className: "fact-list" }, origin.flatMap(fact)));
  }
  parts.push(...siblings(label, catalogue));
  return { title: sentence(label.title), parts };
}

function fact([name, value]) {
  return [element("dt", {}, name), element("dd", {}, value)];
}

function facts(label) {
  const { task, meaning } = label;
  const found = [["Column", element("code", {}, label.column)], ["Task", task.description]];
  if (label.isProbability) found.push(["The answer", `the probability of “${meaning.one ?? "1"}”`]);
  else found.push(["The answer", label.unit ? `a number in ${label.unit}` : "a number"]);
  if (meaning.direction) found.push(["Direction", directionText(meaning.direction)]);
  if (meaning.base_rate != null) found.push(["Base rate", `${percent(meaning.base_rate, 1)} of the molecules`]);
  found.push(["Answered by", EXPERTS[task.experts?.default ?? "own"]]);
  if (task.experts) {
    const inputs = task.experts.inputs.map((name) => INPUTS[name] ?? name).join(" and ");
    found.push(["The trees read", `${inputs} (${task.experts.library})`]);
  }
  if (task.difference != null) found.push(["Difference from the model brought", `${written(task.difference)} standard deviations`]);
  return found;
}

function tableOf(heads, rows, caption) {
  return element(
    "table",
    {},
    element("caption", {}, caption),
    element("thead", {}, element("tr", {}, heads.map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, rows),
  );
}

function row(name, ...cells) {
  return element("tr", {}, element("th", { scope: "row" }, name), cells.map((cell) => element("td", {}, cell)));
}

function counts({ counts: all, positives, one }) {
  const rows = ["train", "valid", "test"].map((subset) => {
    const line = [all[subset].toLocaleString("en")];
    if (positives) line.push(positives[subset].toLocaleString("en"));
    return row({ train: "training", valid: "validation", test: "test" }[subset], ...line);
  });
  const heads = ["Subset", "Molecules", ...(positives ? [`of these “${one ?? "1"}”`] : [])];
  return tableOf(heads, rows, "How many molecules have the label");
}

function distribution(label) {
  const known = label.meaning.distribution;
  if (!known) return [];
  const unit = label.unit ? ` ${label.unit}` : "";
  const [low, middle, high] = known.quartiles.map(written);
  const text =
    `Measured values: mean ${written(known.mean)}, standard deviation ${written(known.deviation)}; ` +
    `quartiles ${low}, ${middle} and ${high}${unit}.`;
  return [note(text)];
}

function scores({ scores: all }) {
  const drawn = all.some((score) => BETWEEN_0_AND_1.has(score.metric));
  const rows = all.map((score) => {
    const unit = score.unit ? ` ${score.unit}` : "";
    const ends = `${written(score.low)} to ${written(score.high)}`;
    const chart = BETWEEN_0_AND_1.has(score.metric) ? interval(score, [0, 1]) : "";
    return row(metricTitle(score.metric), `${written(score.value)}${unit}`, ends, ...(drawn ? [chart] : []));
  });
  return tableOf(["Score", "Value", "95 % interval", ...(drawn ? ["From 0 to 1"] : [])], rows, "On test molecules, bootstrap over molecules");
}

function calibration({ calibration_error: error }) {
  if (error == null) return [];
  const text =
    `Expected calibration error ${fixed(error)}: by so much the probabilities of test molecules ` +
    "differ, on average, from the shares that were found.";
  return [note(text)];
}

function siblings(label, catalogue) {
  const others = catalogue.of(label.task.name).filter((one) => one !== label);
  if (!others.length) return [];
  const links = others.map((one) => element("li", {}, element("a", { href: labelAddress(one) }, one.title)));
  return [
    element("h2", {}, `${count(others.length, "other label")} of ${label.task.name}`),
    element("ul", { className: "columns" }, links),
  ];
}
