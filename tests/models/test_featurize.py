import csv
import gzip
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem, rdBase

from models.errors import MoleculeError
from models.featurize import featurize
from models.graph import MASKED_ATOM, MolGraph
from tests.strategies import quick


def plain_features(smiles: str) -> tuple[list[list[int]], list[tuple[int, int, int, int]]]:
    """The textbook loop over atoms and bonds; where there are stereo marks, of the canonical SMILES."""
    mol = Chem.MolFromSmiles(smiles)
    if set("@/\\") & set(Chem.MolToSmiles(mol)):
        mol = Chem.MolFromSmiles(Chem.MolToSmiles(mol))
    tags = ["CHI_UNSPECIFIED", "CHI_TETRAHEDRAL_CW", "CHI_TETRAHEDRAL_CCW"]
    kinds = ["SINGLE", "DOUBLE", "TRIPLE", "AROMATIC"]
    directions = ["NONE", "ENDUPRIGHT", "ENDDOWNRIGHT"]
    atoms = [[atom.GetAtomicNum() - 1, tags.index(str(atom.GetChiralTag()))] for atom in mol.GetAtoms()]
    edges = []
    for bond in mol.GetBonds():
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        features = kinds.index(str(bond.GetBondType())), directions.index(str(bond.GetBondDir()))
        edges += [(i, j, *features), (j, i, *features)]
    return atoms, sorted(edges)


def as_plain(graph: MolGraph) -> tuple[list[list[int]], list[tuple[int, ...]]]:
    edges = [(*pair, *attr) for pair, attr in zip(graph.edge_index.T.tolist(), graph.edge_attr.tolist(), strict=True)]
    return graph.x.tolist(), sorted(edges)


def invariant(graph: MolGraph) -> tuple[list[object], list[object]]:
    """What does not depend on the numbering: sorted atoms, and sorted bonds with the atoms at their ends."""
    x = graph.x.tolist()
    bonds = [(x[i], x[j], attr) for (i, j), attr in zip(graph.edge_index.T.tolist(), graph.edge_attr.tolist(), strict=True)]
    return sorted(x), sorted(bonds)


@pytest.mark.parametrize(
    "smiles", ["CCO", "C", "[Na+].[Cl-]", "F/C=C/F", "F\\C=C/F", "C[C@H](N)C(=O)O", "C#N", "c1ccc2[nH]ccc2c1", "[H][H]", "[2H]O[2H]"]
)
def test_equals_the_textbook_loop(smiles: str) -> None:
    graph = featurize(smiles).graph
    assert as_plain(graph) == plain_features(smiles)
    graph.validate()


def test_equals_the_textbook_loop_on_real_molecules(shared: Path) -> None:
    with gzip.open(shared / "data/moleculenet/sider.csv.gz", "rt") as file:
        smiles = [row[0] for row in csv.reader(file)][1:1400:7]
    readable = [each for each in smiles if "*" not in each and "->" not in each]
    assert len(readable) > 150
    for each in readable:
        assert as_plain(featurize(each).graph) == plain_features(each)


@settings(quick, max_examples=40)
@given(
    st.integers(0, 2**31 - 1),
    st.sampled_from(["C[C@H](N)C(=O)O", "F/C=C/Cl", "CC(=O)Oc1ccccc1C(=O)O", "C1C[C@H]2CC[C@@H]1C2", "OC[C@@H](O)[C@H](O)C"]),
)
def test_every_spelling_of_a_molecule_gives_one_graph(seed: int, smiles: str) -> None:
    spelled = Chem.MolToRandomSmilesVect(Chem.MolFromSmiles(smiles), 1, randomSeed=seed)[0]
    ours, reference = featurize(spelled), featurize(smiles)
    assert ours.smiles == reference.smiles
    assert invariant(ours.graph) == invariant(reference.graph)
    if set("@/\\") & set(ours.smiles):
        assert as_plain(ours.graph) == as_plain(reference.graph)


@pytest.mark.parametrize(
    ("smiles", "code"),
    [
        ("", "empty_smiles"),
        ("  ", "empty_smiles"),
        ("not a molecule", "smiles_syntax"),
        ("C1CC", "smiles_syntax"),
        ("C\x00C", "smiles_syntax"),
        ("CCO ethanol", "smiles_syntax"),
        ("CC(C)(C)(C)C", "chemistry"),
        ("c1cccc1", "chemistry"),
        ("*CC", "dummy_atom"),
        ("C$C", "bond_type"),
        ("C" * 11, "too_many_atoms"),
    ],
)
def test_strict_errors_have_a_code_and_say_what_was_got(smiles: str, code: str) -> None:
    with pytest.raises(MoleculeError, match="got") as caught:
        featurize(smiles, max_atoms=10)
    assert caught.value.code == code


def test_error_does_not_echo_a_long_or_hostile_text() -> None:
    with pytest.raises(MoleculeError) as caught:
        featurize("\u202e<script>" + "C(" * 5000)
    assert len(str(caught.value)) < 300
    assert "\u202e" not in str(caught.value)


def test_tolerant_mode_reads_what_strict_refuses() -> None:
    dummy = featurize("*CC", strict=False).graph
    assert MASKED_ATOM in dummy.x[:, 0].tolist()
    assert featurize("CC(C)(C)(C)C", strict=False).graph.num_nodes == 6
    assert featurize("C$C", strict=False).graph.edge_attr.tolist() == [[0, 0], [0, 0]]
    with pytest.raises(MoleculeError):
        featurize("c1cccc1", strict=False)


def test_dative_bonds_count_as_single_in_both_directions() -> None:
    graph = featurize("[NH3]->[Cu]").graph.validate()
    assert graph.edge_attr.tolist() == [[0, 0], [0, 0]]


def test_other_chirality_tags_count_as_unspecified() -> None:
    assert featurize("F[Pt@SP1](F)(Cl)Cl").graph.x[:, 1].tolist() == [0] * 5


@pytest.mark.parametrize(("task", "failing"), [("tox21", 8), ("hiv", 7)])
def test_moleculenet_rows_that_fail_the_valence_check(task: str, failing: int, shared: Path) -> None:
    """Strict refuses exactly the published number of rows, tolerant reads them all; only rows with a bracket atom can fail."""
    with gzip.open(shared / f"data/moleculenet/{task}.csv.gz", "rt") as file:
        column = next(csv.reader([file.readline()])).index("smiles")
        suspects = [row[column] for row in csv.reader(file) if "[" in row[column]]
    with rdBase.BlockLogs():
        refused = [smiles for smiles in suspects if Chem.MolFromSmiles(smiles) is None]
    assert len(refused) == failing
    for smiles in refused:
        featurize(smiles, strict=False).graph.validate()
        with pytest.raises(MoleculeError) as caught:
            featurize(smiles)
        assert caught.value.code == "chemistry"


def test_features_are_int64() -> None:
    graph = featurize("CCO").graph
    assert {graph.x.dtype, graph.edge_index.dtype, graph.edge_attr.dtype} == {torch.int64}
