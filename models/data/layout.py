"""Mol blocks of molecules, with 2D coordinates (RDKit)."""

from rdkit import Chem, rdBase
from rdkit.Chem import rdDepictor

from models.data.smiles import read_smiles


def mol_block(smiles: str) -> str:
    """Return a mol block with computed 2D coordinates: V2000, or V3000 of molecules that are too
    large for it. Its first line is empty.

    Args:
        smiles: a readable SMILES; the block has its atoms in its order.

    Raises:
        MoleculeError: the molecule cannot be read.
    """
    with rdBase.BlockLogs():
        mol = read_smiles(smiles, strict=False)
        rdDepictor.Compute2DCoords(mol)
        return str(Chem.MolToMolBlock(mol))
