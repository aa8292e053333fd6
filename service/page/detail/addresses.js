// Addresses of views, which stand in the hash: what is in it is not sent to any server.

const VIEWS = ["label", "model", "report", "compare"];

/** Return the address of the page of a label. */
export function labelAddress(label) {
  return address([["label", label.column]]);
}

/** The address of the page of the model. */
export const MODEL_ADDRESS = "#model";

/** Return the address of the report on a molecule. */
export function reportAddress(molecule, labels) {
  const name = molecule.name ? [["name", molecule.name]] : [];
  return address([["report", molecule.smiles], ...name, ...shown(labels)]);
}

/** Return the address of a comparison. */
export function compareAddress(molecules, labels) {
  const pairs = molecules.flatMap(({ smiles, name }) => [["smiles", smiles], ["name", name ?? ""]]);
  return address([["compare", ""], ...pairs, ...shown(labels)]);
}

function shown(labels) {
  return labels.map((label) => ["show", label.column]);
}

function address(pairs) {
  return `#${new URLSearchParams(pairs)}`;
}

/** Return `{ view, fields }` of a hash, or null if it is of no view. */
export function readAddress(hash) {
  const fields = new URLSearchParams(hash.replace(/^#/, ""));
  const [view] = fields.keys();
  return VIEWS.includes(view) ? { view, fields } : null;
}
