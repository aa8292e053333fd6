"""`structure.js` reads a SMILES as RDKit does, and divides it into groups."""

from typing import TYPE_CHECKING, Any

import pytest
from rdkit import Chem

from tests.service.page.conftest import Watched
from tests.service.test_server import SMILES

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]
ODD = [
    "C[C@H](N)C(=O)O",
    "F/C=C/F",
    "[O-][N+](=O)c1ccc(Cl)c(Br)c1",
    "C1CC2(CC1)OCCO2",
    "CN1C2CCC1CC(OC(=O)C(CO)c1ccccc1)C2",
    "C[Si](C)(C)C#N",
    "[Na+].[O-]S(=O)(=O)c1ccc2[nH]ccc2c1",
    "C%10CCCCC%10",
    "O=c1[nH]c(=O)c2[nH]cnc2[nH]1",
    "C1=CC=CC=C1",
    "[H][H]",
    "c1ccc2c(c1)C1CC2c2ccccc21",
    "N->[Pt](<-N)(Cl)Cl",
    "CC(C)(C)[Se]c1cc[se]c1",
]


def _groups(page: "Page", smiles: str) -> dict[str, Any]:
    found: dict[str, Any] = page.evaluate(
        """async (smiles) => {
          const { readStructure, groupsOf } = await import("./page/detail/structure.js");
          const structure = readStructure(smiles);
          return { ...structure, groups: groupsOf(structure) };
        }""",
        smiles,
    )
    return found


def test_atoms_bonds_and_groups_are_those_of_rdkit(watched: Watched) -> None:
    for text in [*SMILES, *ODD]:
        mol = Chem.MolFromSmiles(text, sanitize="Pt" not in text)
        # the text itself, so that the atoms are in its order
        read = _groups(watched.page, text)
        atoms = [(atom["element"], atom["aromatic"]) for atom in read["atoms"]]
        if text != "C1=CC=CC=C1":  # which the parser makes aromatic
            assert atoms == [(a.GetSymbol(), a.GetIsAromatic()) for a in mol.GetAtoms()], text
        bonds = {frozenset(bond["ends"]) for bond in read["bonds"]}
        pairs = {frozenset((b.GetBeginAtomIdx(), b.GetEndAtomIdx())) for b in mol.GetBonds()}
        assert bonds == pairs, text
        double = {frozenset(bond["ends"]) for bond in read["bonds"] if bond["order"] == 2}
        if text != "C1=CC=CC=C1":
            assert double == {
                frozenset((b.GetBeginAtomIdx(), b.GetEndAtomIdx()))
                for b in mol.GetBonds()
                if b.GetBondType() == Chem.BondType.DOUBLE
            }, text
        members = [atom for group in read["groups"] for atom in group["atoms"]]
        assert sorted(members) == list(range(mol.GetNumAtoms())), text
        Chem.FastFindRings(mol)
        for group in read["groups"]:
            in_ring = [mol.GetAtomWithIdx(atom).IsInRing() for atom in group["atoms"]]
            assert any(in_ring) == ("ring" in group["name"]), (text, group)


@pytest.mark.parametrize(
    ("smiles", "names"),
    [
        ("CC(=O)Oc1ccccc1C(=O)O", ["aromatic ring C6", "carbon", "carboxylic acid", "ester"]),
        ("NC(=O)CCCC#N", ["amide", "chain of 3 carbons", "nitrile"]),
        ("FC(F)(F)c1ccc([N+](=O)[O-])cc1", ["aromatic ring C6", "nitro", "trifluoromethyl"]),
        ("CS(=O)(=O)NCCO", ["carbon", "chain of 2 carbons", "hydroxyl", "sulfonamide"]),
        ("C1CC2CCCC2C1", ["2 joined rings C8"]),
        ("O=C1CCCN1", ["ring C4NO"]),
        ("C1CC2(CC1)OCCO2", ["2 joined rings C7O2"]),
        ("C1CCC(CC1)C1CCCCC1", ["ring C6", "ring C6"]),
    ],
)
def test_groups_have_the_names_that_chemists_use(
    watched: Watched, smiles: str, names: list[str]
) -> None:
    assert sorted(group["name"] for group in _groups(watched.page, smiles)["groups"]) == names
