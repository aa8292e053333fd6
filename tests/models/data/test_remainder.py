import pytest

from models.data.remainder import smiles_without
from models.data.smiles import featurize
from models.errors import MoleculeError


@pytest.mark.parametrize(
    ("smiles", "atoms", "left"),
    [
        ("O=[N+]([O-])c1ccccc1", [0, 1, 2], "c1ccccc1"),
        ("CC(=O)Oc1ccccc1C(=O)O", [10, 11, 12], "CC(=O)Oc1ccccc1"),
        ("c1ccccc1", [0], "C=CC=CC"),
        ("c1cc[nH]c1", [0], "C=CNC"),
        ("C[C@H](N)C(=O)O", [2], "CCC(=O)O"),
        ("F/C=C/F", [0], "C=CF"),
        ("O=[N+]([O-])c1ccccc1", [0], "[O-][NH2+]c1ccccc1"),
        ("CS(=O)(=O)c1ccccc1", [2, 3, 2], "CSc1ccccc1"),
        ("CC(=O)Oc1ccccc1C(=O)O", [4, 5, 6, 7, 8, 9], "CC(=O)O.O=CO"),
        ("[Cl-].[Na+]", [0], "[Na+]"),
        ("CCO", [], "CCO"),
    ],
)
def test_hydrogen_takes_the_bonds_of_what_is_removed(
    smiles: str, atoms: list[int], left: str
) -> None:
    assert featurize(smiles).smiles == smiles
    assert smiles_without(smiles, atoms) == left
    assert featurize(left).smiles == left


@pytest.mark.parametrize(
    ("atoms", "message"),
    [([3], "got atom 3 of 'CCO', expected 0 to 2"), ([-1], "got atom -1"), ([0, 1, 2], "all 3")],
)
def test_atoms_that_are_none_of_the_molecule_are_refused(atoms: list[int], message: str) -> None:
    with pytest.raises(MoleculeError, match=message) as raised:
        smiles_without("CCO", atoms)
    assert raised.value.code == "invalid_atoms"
