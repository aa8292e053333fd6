"""One molecule, one answer: what the network does not see changes neither features nor their
order.
"""

import csv
import gzip
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rdkit import Chem, rdBase

from benchmarks.reading_rule import coloured
from models.compiled.model import CompiledModel
from models.data.molecule import collate
from models.data.smiles import Molecule, featurize, read_graph, read_smiles
from models.errors import MoleculeError
from models.experts.router import RouterConfig
from models.experts.unified import UnifiedModel
from tests.conftest import pico_config, random_backbone, random_experts

OURS = (
    *(
        "C[C@H](N)C(=O)O",
        "CC(C)[C@@H]1CC[C@@H](C)C[C@H]1O",
        "N=C(N)c1ccccc1",
        "F/C=C/Cl",
        "C/C=C/C=C\\C(=O)O",
        "N[C@@H](Cc1c[nH]cn1)C(=O)O",
    ),
    *(
        "C[N@@+]1(CC)CC[C@H](O)C1.[Cl-]",
        "CC[C@@H](C)[C@H](N)C(=O)NCC(=O)O",
        "CN1[C@H]2CC[C@@H]1[C@@H](C(=O)OC)[C@@H](OC(=O)c1ccccc1)C2",
    ),
    *(
        "C[S@](=O)c1ccccc1",
        "O=[N+]([O-])c1ccc([C@@H](O)CN)cc1",
        "C1C[C@@H]2CC[C@H]1C2",
        "C/C(=N\\O)c1ccccc1",
        "[Na+].C[C@H](O)C([O-])=O",
    ),
    *(
        "C[C@H](F)Cl.C[C@@H](F)Cl",
        "OC[C@@H](O)[C@H](O)C",
        "C[P@](=O)(O)c1ccccc1",
        "C[Si@](F)(Cl)CC",
        "CC(C)(C)OC(=O)N[C@@H](C)C(=O)O",
        "c1ccccc1",
    ),
)
"""With stereo of every kind, charges, salts, rings, aromatic NH."""

Writer = Callable[[Chem.Mol, random.Random], Chem.Mol]
AMINE = Chem.MolFromSmarts("[NX3;+0;!$(N-[!#6]);!$(N-*=[!#6]);!$(N-c)]")
ACID = Chem.MolFromSmarts("[CX3](=O)[OX2H1]")


def with_maps(mol: Chem.Mol, numbers: random.Random) -> Chem.Mol:
    for atom in mol.GetAtoms():
        if numbers.random() < 0.7:
            atom.SetAtomMapNum(numbers.randint(1, 99))
    return mol


def with_isotopes(mol: Chem.Mol, numbers: random.Random) -> Chem.Mol:
    for atom in mol.GetAtoms():
        if numbers.random() < 0.4:
            atom.SetIsotope(numbers.choice([2, 13, 15, 18]))
    return mol


def with_all_hydrogens(mol: Chem.Mol, numbers: random.Random) -> Chem.Mol:
    mol = Chem.AddHs(mol)
    for atom in mol.GetAtoms():
        if atom.GetAtomicNum() == 1:
            atom.SetIsotope(numbers.choice([0, 2, 3]))
            atom.SetAtomMapNum(numbers.choice([0, 0, 7]))
    return mol


def with_some_hydrogens(mol: Chem.Mol, numbers: random.Random) -> Chem.Mol:
    return Chem.AddHs(
        mol, onlyOnAtoms=[0, *(k for k in range(mol.GetNumAtoms()) if numbers.random() < 0.3)]
    )


def as_it_is(mol: Chem.Mol, _: random.Random) -> Chem.Mol:
    return mol


def kekulized(mol: Chem.Mol, _: random.Random) -> Chem.Mol:
    Chem.Kekulize(mol, clearAromaticFlags=True)
    return mol


def charged(mol: Chem.Mol, _: random.Random) -> Chem.Mol:
    """Protonate amines and deprotonate acids."""
    for (k,) in mol.GetSubstructMatches(AMINE):
        atom = mol.GetAtomWithIdx(k)
        if not atom.GetIsAromatic() and atom.GetChiralTag() == Chem.ChiralType.CHI_UNSPECIFIED:
            atom.SetNumExplicitHs(atom.GetTotalNumHs() + 1)
            atom.SetNoImplicit(True)
            atom.SetFormalCharge(1)
    for *_, k in mol.GetSubstructMatches(ACID):
        mol.GetAtomWithIdx(k).SetFormalCharge(-1)
    Chem.SanitizeMol(mol)
    return mol


WRITERS: dict[str, Writer] = {
    "order": as_it_is,
    "maps": with_maps,
    "isotopes": with_isotopes,
    "all hydrogens": with_all_hydrogens,
    "some hydrogens": with_some_hydrogens,
    "kekulized": kekulized,
    "charged": charged,
}


def spelled(smiles: str, writer: Writer, seed: int) -> str:
    mol = writer(Chem.Mol(Chem.MolFromSmiles(smiles)), random.Random(seed))
    return str(Chem.MolToRandomSmilesVect(mol, 1, randomSeed=seed + 1)[0])


def check_spellings(smiles: str, seed: int) -> list[Molecule]:
    """Check that every spelling has the graph of the first, up to the order of atoms, and its
    canonical SMILES up to charges, by both ways of reading.
    """
    molecule = featurize(smiles)
    expected, found = coloured(molecule.graph), [molecule]
    for name, writer in {"canonical": None, **WRITERS}.items():
        text = molecule.smiles if writer is None else spelled(smiles, writer, seed)
        other = featurize(text)
        assert coloured(other.graph) == expected, (smiles, name, text)
        assert name == "charged" or other.smiles == molecule.smiles, (smiles, name, text)
        assert all(map(torch.equal, vars(read_graph(text)).values(), vars(other.graph).values())), (
            smiles,
            name,
            text,
        )
        found.append(other)
    return found


@pytest.fixture(scope="module")
def model() -> CompiledModel:
    config = pico_config()
    return CompiledModel(
        UnifiedModel(random_backbone(config), random_experts(config), RouterConfig())
    )


@pytest.mark.parametrize("smiles", OURS)
def test_every_spelling_has_one_graph_and_one_answer(smiles: str, model: CompiledModel) -> None:
    spellings = [molecule for seed in range(4) for molecule in check_spellings(smiles, seed)]
    answers = model(
        collate([molecule.graph for molecule in spellings]), routing="own"
    ).probabilities
    for values in answers.values():
        assert (values.amax(0) - values.amin(0)).max() <= 1e-6


@pytest.mark.parametrize(
    ("task", "column"),
    [
        ("bbbp", "smiles"),
        ("sider", "smiles"),
        ("bace", "mol"),
        ("clintox", "smiles"),
        ("tox21", "smiles"),
    ],
)
def test_every_spelling_of_real_molecules_has_one_graph(
    task: str, column: str, shared: Path
) -> None:
    """100 of each set, so 500: with stereo, charges, salts, metals, isotopes."""
    with gzip.open(shared / f"data/moleculenet/{task}.csv.gz", "rt") as file:
        smiles = [row[column] for row in csv.DictReader(file)]
    checked = 0
    with rdBase.BlockLogs():
        for seed, text in enumerate(random.Random(7).sample(smiles, len(smiles))):
            try:
                featurize(text)
            except MoleculeError:
                continue
            check_spellings(text, seed)
            checked += 1
            if checked == 100:
                return
    pytest.fail(f"got {checked} readable molecules, expected 100")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("C[C@H](N)C(=O)O", "[C@H:1]([NH2:2])([CH3:3])[C:4]([OH:5])=[O:6]"),
        ("CC(C)[C@@H]1CC[C@@H](C)C[C@H]1O", "C[C@@H]1CC[C@@H]([13CH](C)C)[C@H](O)C1"),
        ("c1ccccc1", "[2H]c1c([2H])c([2H])c([2H])c([2H])c1[2H]"),
        ("N=C(N)c1ccccc1", "[H]/N=C(/N)c1ccccc1"),
        ("CO", "[3H]OC"),
        ("c1cc[nH]c1", "[2H]n1cccc1"),
        ("C=CC", "[2H]/C=C/C"),
        ("CCO", "C[C@H]([2H])O"),
        ("CC(C)C", "C[C@@H](C)[13CH3]"),
        ("C/C=C/C", "C/C([2H])=C/C"),
        ("[HH]", "[2H][H]"),
        ("CC", "CC.[H][H]"),
        ("[NaH]", "[2H][Na]"),
    ],
)
def test_what_is_not_seen_is_not_there(one: str, other: str) -> None:
    left, right = featurize(one), featurize(other)
    assert left.smiles == right.smiles
    assert coloured(left.graph) == coloured(right.graph)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("C[C@@H](C(=O)O)[NH3+]", "C[C@H](N)C(=O)O"),
        ("C[C@H](O)CN.Cl", "C[C@H](O)C[NH3+].[Cl-]"),
        ("CN(CC)C[C@H](O)C", "C[N@@H+](CC)C[C@H](O)C"),
        ("C=C[C@H]1C[N@]2CC[C@H]1C[C@H]2O", "C=C[C@H]1C[N@@H+]2CC[C@H]1C[C@H]2O"),
        ("C[C@H](O)CN.Cl", "C[C@H](O)CN.[H+].[Cl-]"),
        ("N[C@@H](Cc1c[nH]cn1)C(=O)O", "N[C@@H](Cc1cnc[nH]1)C(=O)O"),
        ("C[C@H](O)CO", "C[C@H](O)C[O]"),
        ("C[C@H](O)[NH2]->[Cu]", "C[C@H](O)[NH2+]-[Cu-]"),
    ],
)
def test_charges_hydrogens_and_radicals_are_not_seen(one: str, other: str) -> None:
    assert coloured(featurize(one).graph) == coloured(featurize(other).graph)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O"),
        ("F/C=C/F", "F/C=C\\F"),
        ("C[S@](=O)CC", "C[S@@](=O)CC"),
        ("C/C=N/O", "C/C=N\\O"),
    ],
)
def test_stereo_is_seen(one: str, other: str) -> None:
    assert coloured(featurize(one).graph) != coloured(featurize(other).graph)


@pytest.mark.parametrize(
    ("smiles", "atoms"),
    [
        ("[H+]", 1),
        ("[2H+]", 1),
        ("[H-]", 1),
        ("[H]", 1),
        ("[3H][3H]", 1),
        ("[H+].[H-]", 2),
        ("[2H].Cl", 1),
    ],
)
def test_a_molecule_keeps_an_atom(smiles: str, atoms: int) -> None:
    graph = featurize(smiles).graph
    assert graph.num_nodes == atoms
    assert graph.edge_index.shape == (2, 0)


def test_hydrogens_that_hold_atoms_together_stay() -> None:
    """Diborane, which only the tolerant mode reads."""
    assert featurize("[H]1[BH2][H][BH2]1", strict=False).graph.num_nodes == 4


def test_double_bonds_are_not_turned_over_with_their_hydrogens() -> None:
    """RDKit's own reader gives another isomer for this polyene whose hydrogens carry the
    directions."""
    smiles = "C/C=C/C=C/CC/C=C/C=C/C"
    for seed in range(30):
        assert featurize(spelled(smiles, with_all_hydrogens, seed)).smiles == smiles


def test_the_molecule_is_that_of_the_graph() -> None:
    """Scaffolds and fingerprints are of what the model reads."""
    assert Chem.MolToSmiles(read_smiles("[2H]C([2H])([2H])[CH2:3]O")) == "CCO"
