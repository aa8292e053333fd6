// A report on one molecule, to be printed.
import { element } from "../elements.js";
import { titleOf } from "./alerts.js";
import { Inquiry, offered, tasksOf, valueOf } from "./answers.js";
import { printButton } from "./compare.js";
import { printable } from "./drawing.js";
import { answer, fixed, percent, sentence } from "./numbers.js";
import { failure, note } from "./section.js";
import { placesOf } from "./structure.js";
import { bandWords, setWords } from "./trust.js";
import { amongDrugs, directionText, percentileOf, scoreText } from "./values.js";

/** Return the title and the elements of a report. */
export function reportPage(fields, catalogue) {
  const smiles = fields.get("report");
  const title = fields.get("name") || smiles;
  const labels = fields.getAll("show").map((column) => catalogue.labels.get(column)).filter(Boolean);
  if (!smiles || !labels.length) return { title: "Report", parts: [note("Choose a molecule and labels to report on.")] };
  const inquiry = new Inquiry(smiles);
  const body = element("div", { className: "report", aria: { busy: "true" } }, note("Asking the service …"));
  body.renew = () => fill(body, inquiry, labels);
  body.renew();
  return { title, parts: [body], tools: [printButton()], stop: () => inquiry.close() };
}

async function fill(body, inquiry, labels) {
  try {
    const explain = offered(["drugs", "alerts", "domain"], labels);
    const { model, item } = await inquiry.askOne({ tasks: tasksOf(labels), explain });
    body.replaceChildren(...report(model, item, labels));
  } catch (error) {
    const parts = failure(error, body);
    if (parts) body.replaceChildren(...parts);
  }
  body.removeAttribute("aria-busy");
}

function report(model, item, labels) {
  const facts = [
    ["SMILES", element("code", {}, item.smiles)],
    ["Model", `${model.name} ${model.version}`],
    ["SHA-256 of the model", element("code", {}, model.digest)],
    ["Date", new Date().toISOString().slice(0, 10)],
  ];
  return [
    element(
      "div",
      { className: "report-head" },
      printable(item.smiles, { width: 360, height: 240, alt: `Structure of ${item.smiles}` }),
      element("dl", { className: "fact-list" }, facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])),
    ),
    element("h2", {}, "Answers"),
    ...tasksOf(labels).flatMap((task) => answers(item, labels.filter((label) => label.task.name === task))),
    ...alerts(item.alerts),
    note("For research: no answer is a statement on the safety of a substance."),
  ];
}

function answers(item, labels) {
  const { task } = labels[0];
  const nearest = item.domain?.[task.name]?.nearest[0]?.similarity;
  const near = nearest === undefined ? "" : ` Nearest training molecule: similarity ${fixed(nearest, 2)}.`;
  return [
    element("h3", {}, task.name),
    note(`${task.description}.${near}`),
    element("table", { className: "report-values", role: "table" }, element("tbody", { role: "rowgroup" }, labels.map((label) => line(item, label)))),
  ];
}

function line(item, label) {
  const { measured, one, direction, scores } = label.meaning;
  const unit = label.unit ? ` ${label.unit}` : "";
  const means = [measured, one && `The answer is the probability of “${one}”.`];
  if (direction) means.push(`${sentence(directionText(direction))}.`);
  if (scores?.length) means.push(`${sentence(scoreText(scores[0]))}.`);
  const domain = item.domain?.[label.task.name]?.labels[label.name];
  if (domain?.band) means.push(bandWords(domain.band, label).text);
  if (domain?.conformal) means.push(`At ${percent(domain.conformal.confidence)} confidence: ${setWords(domain.conformal, label)}.`);
  return element(
    "tr",
    { role: "row" },
    element("th", { scope: "row", role: "rowheader" }, sentence(label.title)),
    element("td", { className: "answer", role: "cell" }, `${answer(label, valueOf(item, label))}${unit}`, amongDrugs(percentileOf(item, label))),
    element("td", { role: "cell" }, means.filter(Boolean).join(" ")),
  );
}

function alerts(found) {
  if (!found) return [];
  const entries = found.map((alert) => {
    const atoms = [...alert.atoms].sort((a, b) => a - b);
    return element("li", {}, `${titleOf(alert)}, atoms ${placesOf(atoms)}`);
  });
  const body = entries.length ? element("ul", {}, entries) : note("None of the patterns of PAINS and BRENK is in it.");
  return [element("h2", {}, "Structural alerts"), body];
}
