// The page of the model: what it is, its tasks, its card.
import { send } from "../api.js";
import { element } from "../elements.js";
import { labelAddress } from "./addresses.js";
import { rendered } from "./markdown.js";
import { count } from "./numbers.js";
import { failure, note } from "./section.js";
import { metricTitle } from "./values.js";

/** Return the title and the elements of the page of the model. */
export function modelPage(_fields, catalogue) {
  const { model } = catalogue;
  const card = element("section", { className: "model-card", aria: { busy: "true" } }, note("Asking the service …"));
  card.renew = () => showCard(card);
  card.renew();
  const parts = [
    element("dl", { className: "fact-list" }, facts(catalogue).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])),
    element("h2", {}, "Tasks"),
    taskTable(catalogue),
    element("h2", {}, "Card"),
    card,
  ];
  return { title: `${model.name} ${model.version}`, parts };
}

function facts({ model, tasks, labels }) {
  const { backbone, drugs } = model;
  const shape = [backbone.kind, backbone.num_layers && `${backbone.num_layers} layers`, backbone.hidden_dim && `${backbone.hidden_dim} wide`];
  const found = [
    ["Answers", `${count(tasks.length, "task")}, ${count(labels.size, "label")}`],
    ["Network", shape.filter(Boolean).join(", ")],
    ["Made", model.created.slice(0, 10)],
    ["SHA-256", element("code", {}, model.digest)],
    ["Runs on", model.device],
    ["Limits", `${count(model.limits.max_molecules, "molecule")} a request, ${count(model.limits.max_atoms, "atom")} a molecule`],
  ];
  if (drugs) {
    const known = `${count(drugs.in_training, "drug")} of them are training molecules of a task`;
    found.push(["Compared with", `${count(drugs.molecules, "approved drug")}: ${drugs.source}, ${drugs.date}; ${known}`]);
  }
  return found;
}

function taskTable({ tasks, labels }) {
  const rows = tasks.map((task) => {
    const own = task.labels.map((name) => labels.get(`${task.name}.${name}`));
    const links = own.flatMap((label, k) => [k ? ", " : "", element("a", { href: labelAddress(label) }, label.title)]);
    const shown = own.length <= 6 ? element("span", {}, links) : element(
      "details",
      {},
      element("summary", {}, count(own.length, "label")),
      element("ul", { className: "columns" }, own.map((label) => element("li", {}, element("a", { href: labelAddress(label) }, label.title)))),
    );
    const score = own.length === 1 ? own[0].meaning.scores?.[0] : null;
    return element(
      "tr",
      {},
      element("th", { scope: "row" }, task.name, element("small", { className: "under" }, task.description)),
      element("td", {}, shown),
      element("td", {}, score ? `${metricTitle(score.metric)} ${score.value.toPrecision(2)}` : "–"),
    );
  });
  const heads = ["Task", "Labels", "Test score"].map((text) => element("th", { scope: "col" }, text));
  const table = element("table", {}, element("thead", {}, element("tr", {}, heads)), element("tbody", {}, rows));
  return element("div", { className: "scroll", tabIndex: 0, role: "region", aria: { label: "Tasks" } }, table);
}

async function showCard(card) {
  try {
    const text = await (await send("model/card")).text();
    card.replaceChildren(...rendered(text, 3));
  } catch (error) {
    if (error.status === 404) card.replaceChildren(note("The model has no card."));
    else card.replaceChildren(...(failure(error, card) ?? []));
  }
  card.removeAttribute("aria-busy");
}
