import pytest
from rdkit import Chem

from models.data.smiles_parser import ATOM, parse_smiles, parse_text
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
