// Who answers: the shares of network and trees, and how a mixture of the tasks' experts is made.
import { element } from "../elements.js";
import { tasksOf } from "./answers.js";
import { level } from "./charts.js";
import { answer, fixed, percent } from "./numbers.js";
import { note } from "./section.js";

const NAMES = { own: "network", forest: "trees on fingerprints" };
const LEAST = 0.005; // what is written as 0.00

/** Return the elements on the experts that answer a label, and on routing `moe`. */
export async function explainExperts({ inquiry, label, labels, catalogue }) {
  const { item } = await inquiry.askOne({ tasks: [label.task.name], explain: ["experts"] });
  const shares = sharesOf(item.experts[label.task.name], label);
  if (!catalogue.model.sites.length || catalogue.tasks.length < 2) {
    return [shares, note("This model does not mix experts of several tasks.")];
  }
  const tasks = tasksOf(labels);
  const mixed = await inquiry.askOne({ tasks, routing: "moe", explain: ["routing"] });
  return [shares, ...routingOf(mixed.item.routing, tasks, catalogue)];
}

function sharesOf(experts, label) {
  const rows = Object.entries(experts).map(([name, { weight, values }]) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, NAMES[name] ?? name),
      element("td", {}, level(weight), percent(weight)),
      element("td", {}, answer(label, values[label.name])),
    ),
  );
  const heads = ["Expert", "Weight", "Answer"].map((text) => element("th", { scope: "col" }, text));
  return element(
    "table",
    { className: "shares" },
    element("thead", {}, element("tr", {}, heads)),
    element("tbody", {}, rows),
  );
}

function routingOf(routing, tasks, catalogue) {
  const mixing = catalogue.model.sites.filter((site) =>
    tasks.some((task) => Object.values(routing[task][site]).every((weight) => weight < 1 - LEAST)),
  );
  const about =
    "With the routing “moe” every molecule gets its own mixture of the tasks' experts. The values " +
    "above are of the routing “own”, where each task's own expert answers alone.";
  if (!mixing.length) {
    return [
      element("h4", {}, "Mixture of experts"),
      note(`${about} For this molecule and these tasks the router chooses the own experts.`),
    ];
  }
  const holder = element("div", { className: "scroll", tabIndex: 0, role: "region", aria: { label: "Routing weights" } });
  const show = (site) => holder.replaceChildren(heatmap(routing, tasks, site));
  const options = mixing.map((site) => element("option", { value: site }, siteTitle(site)));
  const select = element("select", { id: "routing-site", on: { change: () => show(select.value) } }, options);
  select.value = mixing.at(-1);
  show(select.value);
  return [
    element("h4", {}, "Mixture of experts"),
    note(about),
    element("div", { className: "line-field" }, element("label", { for: "routing-site" }, "Where"), select),
    holder,
  ];
}

function siteTitle(site) {
  return site === "graph" ? "after the readout" : site.replace("layer_", "layer ");
}

/** A table of weights: a row per task, a column per expert that takes part. */
function heatmap(routing, tasks, site) {
  const names = Object.keys(routing[tasks[0]][site]);
  const used = names.filter((name) => tasks.some((task) => routing[task][site][name] >= LEAST));
  const left = names.length - used.length;
  const heads = used.map((name) =>
    element("th", { scope: "col" }, element("span", { className: "upright" }, name)),
  );
  const largest = Math.max(...tasks.flatMap((task) => Object.values(routing[task][site])));
  const rows = tasks.map((task) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, task),
      used.map((name) => cell(routing[task][site][name], largest)),
    ),
  );
  const rest = left ? `; ${left} experts below ${fixed(LEAST)} everywhere are left out` : "";
  return element(
    "table",
    { className: "heatmap" },
    element("caption", {}, `Weight of every expert (columns) in the answer of a task (rows); the darker, the nearer to the largest${rest}`),
    element("thead", {}, element("tr", {}, element("td"), heads)),
    element("tbody", {}, rows),
  );
}

function cell(weight, largest) {
  return element("td", { className: "heat", style: { "--weight": weight / largest } }, fixed(weight, 2));
}
