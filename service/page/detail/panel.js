// The panel of one molecule.
import { byId } from "../elements.js";

/**
 * Show the panel of a molecule.
 *
 * Args:
 *   molecule: { smiles, text, name, cells } - canonical SMILES, the text as it was given, and the
 *     columns of the upload by name.
 *   labels: the labels that the table shows, of the `Catalogue`.
 *   catalogue: the `Catalogue`.
 */
export function openMolecule(molecule, labels, catalogue) {
  byId("panel").hidden = false;
  byId("panel").parentElement.classList.add("with-panel");
}

/** Hide the panel, and give the focus back to where it was opened from. */
export function closeMolecule() {
  byId("panel").hidden = true;
  byId("panel").parentElement.classList.remove("with-panel");
}
