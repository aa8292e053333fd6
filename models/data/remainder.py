"""What is left of a molecule when atoms are removed."""

from collections.abc import Collection

from rdkit import Chem, rdBase

from models.data.molecule_text import shown
from models.data.smiles import read_smiles
from models.errors import MoleculeError


def smiles_without(smiles: str, atoms: Collection[int]) -> str:
    """Remove atoms from a molecule; hydrogen atoms take their bonds.

    Aromatic bonds are written as single and double ones first, so that a ring may be cut. Stereo
    of atoms and double bonds beside a removed atom is dropped. What is left may be several
    components.

    Args:
        smiles: canonical SMILES (`models.data.smiles.Molecule`).
        atoms: numbers of atoms, from 0 in the order of `smiles`.

    Returns:
        SMILES of what is left.

    Raises:
        MoleculeError: with code `invalid_atoms`: the molecule has no such atom, or no atom is left;
            with code `chemistry`: what is left is no molecule.
    """
    with rdBase.BlockLogs():
        mol = Chem.RWMol(read_smiles(smiles))
        count = mol.GetNumAtoms()
        if wrong := [atom for atom in atoms if not 0 <= atom < count]:
            got = f"without_atoms: got atom {wrong[0]} of {shown(smiles)}"
            raise MoleculeError("invalid_atoms", f"{got}, expected 0 to {count - 1}")
        if len(set(atoms)) == count:
            got = f"without_atoms: got all {count} atoms of {shown(smiles)}"
            raise MoleculeError("invalid_atoms", f"{got}, expected fewer")
        Chem.Kekulize(mol, clearAromaticFlags=True)
        for number in set(atoms):
            _cap_neighbours(mol.GetAtomWithIdx(number), set(atoms))
        for number in sorted(set(atoms), reverse=True):
            mol.RemoveAtom(number)
        if Chem.SanitizeMol(mol, catchErrors=True) != Chem.SANITIZE_NONE:
            got = f"without_atoms: got atoms without which {shown(smiles)} is no molecule"
            raise MoleculeError("chemistry", f"{got}, expected others")
        Chem.AssignStereochemistry(mol, cleanIt=True, force=True)
        return str(Chem.MolToSmiles(mol))


def _cap_neighbours(removed: Chem.Atom, atoms: set[int]) -> None:
    """Give hydrogen atoms to the neighbours of an atom that is removed."""
    for bond in removed.GetBonds():
        neighbour = bond.GetOtherAtom(removed)
        if neighbour.GetIdx() in atoms:
            continue
        neighbour.SetChiralTag(Chem.ChiralType.CHI_UNSPECIFIED)
        if neighbour.GetNoImplicit():  # the others get theirs by valence
            order = int(bond.GetBondTypeAsDouble())
            neighbour.SetNumExplicitHs(neighbour.GetNumExplicitHs() + order)
