from pathlib import Path

import pytest
from rdkit import Chem, rdBase

from models.data.smiles_parser import ATOM, parse_as_written, parse_smiles, parse_text
from models.errors import MoleculeError


def state(mol: Chem.Mol) -> list[object]:
    """Return everything of a molecule that features and canonical SMILES depend on."""
    atoms = [
        (
            atom.GetAtomicNum(),
            atom.GetFormalCharge(),
            atom.GetTotalNumHs(),
            atom.GetNumRadicalElectrons(),
            atom.GetIsAromatic(),
            str(atom.GetChiralTag()),
        )
        for atom in mol.GetAtoms()
    ]
    bonds = [
        (
            bond.GetBeginAtomIdx(),
            bond.GetEndAtomIdx(),
            str(bond.GetBondType()),
            str(bond.GetBondDir()),
            str(bond.GetStereo()),
        )
        for bond in mol.GetBonds()
    ]
    return [atoms, bonds, Chem.MolToSmiles(mol)]


@pytest.mark.parametrize(
    "smiles",
    [
        "CC(=O)Oc1ccccc1C(=O)O",
        "CN(=O)=O",
        "[CH3]",
        "C1=CC=CN1",
        "[Na+].[O-]C(=O)c1ccccc1I",
        "IC(I)I.[K+]",
        "C[C@H](N)C(=O)[O-].[Zn+2]",
        "C[C@@](C)(C)C",
        "C[C@]=C",
        "C[N@]1CC1C",
        "F/C=C\\C=C(C)C",
        "O=[IH2]C",
        "C[As@](N)F",
        "CN(C)(C)[Zn]",
        "[Fe](Cl)(Cl)Cl",
    ],
)
def test_short_ways_read_what_rdkit_reads(smiles: str) -> None:
    parsed = parse_text(smiles, True, None)
    assert parsed.in_order
    assert state(parsed.mol) == state(Chem.MolFromSmiles(smiles))


@pytest.mark.parametrize(
    ("smiles", "is_plain"),
    [
        ("CCO", True),
        ("[Na+].CC(=O)[O-]", True),
        ("CC(=O)[O-].[K+]", True),
        ("CI", True),
        ("Ic1ccccc1I", True),
        ("C(I)C.I", True),
        ("I", True),
        ("[Na+]C", False),
        ("C[Na+]", False),
        ("O=I", False),
        ("I(=O)C", False),
        ("CI(C)C", False),
        ("I1CC1", False),
        ("I=O", False),
        ("C[C@H](N)O", False),
        ("C/C=C/C", False),
        ("[Fe+2]", False),
        ("[2H]C", False),
    ],
)
def test_a_plain_smiles_has_no_mark_that_needs_the_canonical_one(
    smiles: str, is_plain: bool
) -> None:
    assert parse_text(smiles, False, None).is_plain is is_plain


@pytest.mark.parametrize(
    "smiles", ["[H]C", "[2H]C", "[CH3:1]C", "[H+]", "[HH]", "C[H-]C", "[#6]C", "C*", "[NH3]->[Cu]"]
)
def test_atoms_that_may_not_be_those_of_the_text_are_not_taken_from_it(smiles: str) -> None:
    assert not parse_text(smiles, False, None).in_order


@pytest.mark.parametrize(
    ("smiles", "atoms"),
    [
        ("[Hg]C", ["[Hg]", "C"]),
        ("[He]", ["[He]"]),
        ("CC[Ho]", ["C", "C", "[Ho]"]),
        ("Clc1c[nH]cc1Br", ["Cl", "c", "c", "[nH]", "c", "c", "Br"]),
        ("[C@@H](F)(Cl)Br", ["[C@@H]", "F", "Cl", "Br"]),
    ],
)
def test_the_text_names_the_atoms_in_order(smiles: str, atoms: list[str]) -> None:
    parsed = parse_text(smiles, False, None)
    assert parsed.in_order
    assert ATOM.findall(smiles) == atoms
    assert parsed.mol.GetNumAtoms() == len(atoms)


@pytest.mark.parametrize(
    ("text", "code"), [("", "empty_smiles"), ("C1CC", "smiles_syntax"), ("CF(C)C", "chemistry")]
)
def test_errors_have_the_code_of_the_long_way(text: str, code: str) -> None:
    with pytest.raises(MoleculeError) as raised:
        parse_smiles(text, True)
    assert raised.value.code == code


ODD = (Path(__file__).parent / "odd_molecules.smi").read_text().split()


@pytest.mark.parametrize("keep_hydrogens", [False, True])
def test_as_written_is_what_rdkit_reads_by_default(keep_hydrogens: bool) -> None:
    parameters = Chem.SmilesParserParams()
    parameters.removeHs = not keep_hydrogens
    refused = 0
    for text in ODD:
        with rdBase.BlockLogs():
            expected = Chem.MolFromSmiles(text, parameters)
        if expected is None:
            refused += 1
            with pytest.raises(MoleculeError, match="got"):
                parse_as_written(text, keep_hydrogens)
            continue
        parsed = parse_as_written(text, keep_hydrogens)
        assert state(parsed.mol) == state(expected), text
        assert hybrids(parsed.mol) == hybrids(expected), text
        assert not parsed.in_order or len(ATOM.findall(text)) == parsed.mol.GetNumAtoms()
    assert refused < 20


def hybrids(mol: Chem.Mol) -> list[object]:
    """Return what only chemprop's features depend on, beside `state`."""
    atoms = [(str(atom.GetHybridization()), atom.GetMass()) for atom in mol.GetAtoms()]
    bonds = [(bond.GetIsConjugated(), bond.IsInRing()) for bond in mol.GetBonds()]
    return [*atoms, *bonds]


@pytest.mark.parametrize(("keep_hydrogens", "atoms"), [(False, 5), (True, 7)])
def test_as_written_keeps_labels_and_the_hydrogens_it_is_told_to(
    keep_hydrogens: bool, atoms: int
) -> None:
    mol = parse_as_written(" [13CH3:2]O[2H].*C([H])[H] ", keep_hydrogens).mol
    assert mol.GetNumAtoms() == atoms
    assert (mol.GetAtomWithIdx(0).GetIsotope(), mol.GetAtomWithIdx(0).GetAtomMapNum()) == (13, 2)
    assert [atom.GetAtomicNum() for atom in mol.GetAtoms()][:4] == [6, 8, 1, 0]
