"""Mol blocks with computed coordinates."""

import pytest
from rdkit import Chem

from models.data.layout import mol_block
from models.errors import MoleculeError


@pytest.mark.parametrize(
    "smiles", ["CCO", "C[C@H](N)C(=O)O", "C/C=C/Cl", "[Na+].[Cl-]", "c1cc[nH]c1"]
)
def test_a_block_is_the_molecule_in_the_order_of_its_smiles(smiles: str) -> None:
    mol = Chem.MolFromMolBlock(mol_block(smiles))
    assert Chem.MolToSmiles(mol) == Chem.CanonSmiles(smiles)
    symbols = [atom.GetSymbol() for atom in Chem.MolFromSmiles(smiles).GetAtoms()]
    assert [atom.GetSymbol() for atom in mol.GetAtoms()] == symbols
    places = {tuple(mol.GetConformer().GetPositions()[k].round(3)) for k in range(len(symbols))}
    assert len(places) == len(symbols), "atoms lie apart"


def test_large_molecules_have_blocks_too() -> None:
    assert "V3000" in mol_block("C" * 1000)


def test_an_unreadable_molecule_is_an_error() -> None:
    with pytest.raises(MoleculeError):
        mol_block("C1CC")
