"""Substructure search."""

import pytest

from models.data.substructure import MOST_LISTED, SmartsError, find_substructure, read_smarts
from models.errors import MoleculeError


def test_occurrences_are_listed_in_the_order_of_the_smarts() -> None:
    assert find_substructure("CC(=O)O", "O=C") == [(2, 1)]
    assert find_substructure("CC(=O)O", "C(=O)[OH]") == [(1, 2, 3)]
    assert find_substructure("CC(=O)O", "N") == []
    assert find_substructure("c1ccc(-c2ccccc2)cc1", "c1ccccc1") == [
        (0, 1, 2, 3, 10, 11),
        (4, 5, 6, 7, 8, 9),
    ]
    assert len(find_substructure("C" * 50, "CC")) == MOST_LISTED


def test_hydrogens_are_no_atoms() -> None:
    assert find_substructure("[2H]C([2H])O", "[H]") == []
    assert find_substructure("CO", "[CH3]") == [(0,)]


@pytest.mark.parametrize(
    ("smarts", "message"),
    [
        ("[C", "got no valid SMARTS near character 2"),
        ("CC(C", "got no valid SMARTS near character 3"),
        ("CCXX", "got no valid SMARTS near character 3"),
        ("C1CC", "got no valid SMARTS, expected"),
        ("[$([$(", "near character 6"),
        ("", "without atoms"),
        ("C C", "got blanks"),
        ("C |ha:0|", "got blanks"),
        ("\u00e9", "other than ASCII"),
    ],
)
def test_wrong_smarts_are_refused_with_their_place(
    smarts: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SmartsError, match=message) as caught:
        read_smarts(smarts)
    assert caught.value.code == "invalid_smarts"
    assert capfd.readouterr().err == "", "RDKit's log shows structures"


def test_an_unreadable_molecule_is_an_error() -> None:
    with pytest.raises(MoleculeError):
        find_substructure("C1CC", "C")
