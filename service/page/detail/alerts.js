// Structural alerts: substructures that catalogues warn of.
import { element } from "../elements.js";
import { explanationOf } from "./answers.js";
import { drawing, redraw } from "./drawing.js";
import { note } from "./section.js";
import { placesOf, readStructure, weightsOn } from "./structure.js";

const SIZE = { width: 460, height: 260 };
const CATALOGS = {
  PAINS: "patterns that often disturb assays (Baell and Holloway 2010)",
  BRENK: "groups that are unwanted in screening, such as reactive ones (Brenk et al. 2008)",
};

/** Return the alerts of a molecule; their atoms are coloured on hover and focus. */
export async function explainAlerts({ inquiry, label }) {
  const { item } = await inquiry.askOne({ tasks: [label.task.name], explain: ["alerts"] });
  const sources = Object.entries(CATALOGS).map(([name, means]) => `${name}: ${means}`);
  const about = note(`${sources.join("; ")}. An alert is a reason to look, not a finding.`);
  const alerts = explanationOf(item, "alerts");
  if (!alerts.length) return [element("p", {}, "None of the patterns is in it."), about];
  const structure = readStructure(item.smiles);
  const all = [...new Set(alerts.flatMap((alert) => alert.atoms))];
  const show = (atoms) => ({ ...SIZE, weights: weightsOn(structure, atoms) });
  const alt = "The molecule; atoms of the alerts are coloured";
  const picture = drawing(item.smiles, { ...show(all), alt });
  const entries = alerts.map((alert) => {
    const text = `${titleOf(alert)}, atoms ${placesOf([...alert.atoms].sort((a, b) => a - b))}`;
    const light = (atoms) => () => redraw(picture, item.smiles, show(atoms));
    const on = { mouseenter: light(alert.atoms), mouseleave: light(all), focus: light(alert.atoms), blur: light(all) };
    return element("li", {}, element("button", { type: "button", className: "line", on }, text));
  });
  return [
    element("figure", { className: "figure" }, picture),
    element("ul", { className: "alerts" }, entries),
    about,
  ];
}

/** Return the name of an alert as people write it, and its catalogue. */
export function titleOf({ catalog, name }) {
  return `${name.replaceAll("_", " ")} (${catalog})`;
}
