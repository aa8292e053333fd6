// Takes atoms out of a molecule. The editor's library does it, so that nothing is written twice.
import { loadLibrary } from "../editor.js";

/**
 * Return a molecule without some of its atoms as a mol block; hydrogen takes their places.
 *
 * Args: `smiles` is canonical; `members` are atoms in its order; `structure` is of `readStructure`.
 * Raises: Error if the library reads the molecule in another way than the service.
 */
export async function withoutAtoms(smiles, members, { atoms }) {
  const { Molecule } = await loadLibrary();
  const molecule = Molecule.fromSmiles(smiles);
  const same = atoms.every(({ element }, a) => molecule.getAtomLabel(a) === element);
  if (molecule.getAllAtoms() !== atoms.length || !same) {
    throw new Error("the atoms cannot be taken out of this molecule");
  }
  for (const a of members) molecule.markAtomForDeletion(a);
  molecule.deleteMarkedAtomsAndBonds();
  return molecule.toMolfileV3();
}
