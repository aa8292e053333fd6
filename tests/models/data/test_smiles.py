import csv
import gzip
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem, rdBase

from models.data.molecule import MASKED_ATOM, MolGraph
from models.data.smiles import Molecule, featurize, featurize_all, read_graph, read_graphs
from models.errors import MoleculeError
from tests.strategies import quick


def plain_features(smiles: str) -> tuple[list[list[int]], list[tuple[int, int, int, int]]]:
    """Compute features by the textbook loop over atoms and bonds; of the canonical SMILES where
    there are stereo marks. Not for molecules of `has_own_order`.
    """
    mol = Chem.MolFromSmiles(smiles)
    if set("@/\\") & set(Chem.MolToSmiles(mol)):
        mol = Chem.MolFromSmiles(Chem.MolToSmiles(mol))
    tags = ["CHI_UNSPECIFIED", "CHI_TETRAHEDRAL_CW", "CHI_TETRAHEDRAL_CCW"]
    kinds = ["SINGLE", "DOUBLE", "TRIPLE", "AROMATIC"]
    directions = ["NONE", "ENDUPRIGHT", "ENDDOWNRIGHT"]
    atoms = [
        [atom.GetAtomicNum() - 1, tags.index(str(atom.GetChiralTag()))] for atom in mol.GetAtoms()
    ]
    edges = []
    for bond in mol.GetBonds():
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        features = kinds.index(str(bond.GetBondType())), directions.index(str(bond.GetBondDir()))
        edges += [(i, j, *features), (j, i, *features)]
    return atoms, sorted(edges)


def has_own_order(smiles: str) -> bool:
    """Return True if something that the network does not see (charges, NH, hydrogen atoms) is in
    the canonical SMILES or affects its order.
    """
    canonical = Chem.CanonSmiles(smiles)
    return "[H+]" in canonical or bool(
        set("@/\\") & set(canonical) and re.search(r"\[(?!C@@?H?\])", canonical)
    )


def as_plain(graph: MolGraph) -> tuple[list[list[int]], list[tuple[int, ...]]]:
    edges = [
        (*pair, *attr)
        for pair, attr in zip(graph.edge_index.T.tolist(), graph.edge_attr.tolist(), strict=True)
    ]
    return graph.x.tolist(), sorted(edges)


def invariant(graph: MolGraph) -> tuple[list[object], list[object]]:
    """Return sorted atoms, and sorted bonds with the atoms at their ends: independent of the
    numbering.
    """
    x = graph.x.tolist()
    bonds = [
        (x[i], x[j], attr)
        for (i, j), attr in zip(graph.edge_index.T.tolist(), graph.edge_attr.tolist(), strict=True)
    ]
    return sorted(x), sorted(bonds)


@pytest.mark.parametrize(
    "smiles",
    [
        "CCO",
        "C",
        "[Na+].[Cl-]",
        "F/C=C/F",
        "F\\C=C/F",
        "C[C@H](N)C(=O)O",
        "C#N",
        "c1ccc2[nH]ccc2c1",
        "[HH]",
        "O",
    ],
)
def test_equals_the_textbook_loop(smiles: str) -> None:
    graph = featurize(smiles).graph
    assert as_plain(graph) == plain_features(smiles)
    graph.validate()


def test_equals_the_textbook_loop_on_real_molecules(shared: Path) -> None:
    with gzip.open(shared / "data/moleculenet/sider.csv.gz", "rt") as file:
        smiles = [row[0] for row in csv.reader(file)][1:1400:7]
    readable = [
        text for text in smiles if "*" not in text and "->" not in text and not has_own_order(text)
    ]
    assert len(readable) > 130
    for text in readable:
        assert as_plain(featurize(text).graph) == plain_features(text)


@settings(quick, max_examples=40)
@given(
    st.integers(0, 2**31 - 1),
    st.sampled_from(
        [
            "C[C@H](N)C(=O)O",
            "F/C=C/Cl",
            "CC(=O)Oc1ccccc1C(=O)O",
            "C1C[C@H]2CC[C@@H]1C2",
            "OC[C@@H](O)[C@H](O)C",
        ]
    ),
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
def test_moleculenet_rows_that_fail_the_valence_check(
    task: str, failing: int, shared: Path
) -> None:
    """Strict refuses exactly the published number of rows, tolerant reads them all; only rows with
    a bracket atom can fail."""
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


def outcome(read: Callable[..., Molecule | MolGraph], smiles: str, **options: Any) -> Any:
    """Return the tensors of the graph as plain lists in their order, or the error."""
    try:
        molecule = read(smiles, **options)
    except MoleculeError as error:
        return error.code, str(error)
    graph = molecule.graph if isinstance(molecule, Molecule) else molecule
    return [tensor.tolist() for tensor in (graph.x, graph.edge_index, graph.edge_attr)]


NASTY = [
    *(
        "",
        " ",
        ".",
        "()",
        "not a molecule",
        "C1CC",
        "C\x00C",
        "CCO ethanol",
        "\u00e9C",
        " CCO\n",
        "CC(C)(C)(C)C",
        "c1cccc1",
        "c1nccc1",
        "C" * 11,
    ),
    *(
        "*CC",
        "[#0]C",
        "C$C",
        "C~C",
        "C1CC~1",
        "C~C*",
        "[Na+256]",
        "[1000C]",
        "[CH100]",
        "[CH10]",
        "[C+9]",
        "[CH4+]",
        "[NH4+]",
        "[O-][N+](=O)C",
        "CN(=O)=O",
    ),
    *(
        "[H]",
        "[H][H]",
        "[2H]O[2H]",
        "[H]C([H])F",
        "[H+]",
        "[H]/C=C/F",
        "[HH]",
        "O=I",
        "O=[IH]",
        "CI",
        "[I-]",
        "[IH2]C",
        "[#53]C",
        "[#6]C",
    ),
    *(
        "[NH3]->[Cu]",
        "[Cu]<-[NH3]",
        "[Cu]N(C)(C)C",
        "F[Pt@SP1](F)(Cl)Cl",
        "CN(C)(C)[Na]",
        "[Na+].[Cl-]",
        "[nH]1cccc1",
        "c1cc[se]c1",
        "[SeH]C",
        "[SiH3]C",
    ),
    *(
        "F/C=C/F",
        "F\\C=C/F",
        "FC=CF",
        "C[C@H](N)C(=O)O",
        "C[C@@](C)(C)C",
        "C/C=C(C)C",
        "C[N@+](CC)(CCC)F",
        "[13CH3]C",
        "C[CH:1]=O",
        "[B-](F)(F)(F)F",
        "b1ccccc1",
    ),
    *(
        "Sc1ccccc1",
        "Cn1cccc1",
        "Cc1ccccc1",
        "[Sc]",
        "Oc1ccc(Br)cc1Cl",
        "C%10CCC%10",
        "C-C",
        "c1:c:c:c:c:c1",
        "O=c1[nH]cccc1",
        "FS(F)(F)(F)(F)F",
        "CP(=O)(=O)C",
    ),
]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("smiles", NASTY)
def test_graph_alone_is_that_of_the_molecule_and_so_are_its_errors(
    smiles: str, strict: bool
) -> None:
    options = {"strict": strict, "max_atoms": 10}
    assert outcome(read_graph, smiles, **options) == outcome(featurize, smiles, **options)


@pytest.mark.parametrize("strict", [True, False])
def test_many_at_a_time_are_what_they_are_one_by_one(strict: bool) -> None:
    options = {"strict": strict, "max_atoms": 10}
    found = featurize_all(NASTY, **options)
    assert len(NASTY) > 50
    for smiles, molecule in zip(NASTY, found, strict=True):
        if isinstance(molecule, MoleculeError):
            assert (molecule.code, str(molecule)) == outcome(featurize, smiles, **options)
        else:
            assert molecule.smiles == featurize(smiles, **options).smiles
            assert outcome(lambda _, molecule=molecule: molecule, smiles) == outcome(
                featurize, smiles, **options
            )
    assert featurize_all([]) == []


@settings(quick, max_examples=60)
@given(
    st.lists(
        st.sampled_from(
            [*NASTY, *"CNOPSFBIHcnops[]()=#123@/\\+-.:", "[H]", "[nH]", "Cl", "[Cu]", "->"]
        ),
        max_size=5,
    ).map("".join),
    st.booleans(),
)
def test_graph_alone_is_that_of_the_molecule_in_any_text(smiles: str, strict: bool) -> None:
    assert outcome(read_graph, smiles, strict=strict) == outcome(featurize, smiles, strict=strict)


@pytest.mark.parametrize(
    ("task", "column"),
    [("hiv", "smiles"), ("bbbp", "smiles"), ("sider", "smiles"), ("bace", "mol")],
)
def test_graph_alone_is_that_of_the_molecule_on_real_molecules(
    task: str, column: str, shared: Path
) -> None:
    with gzip.open(shared / f"data/moleculenet/{task}.csv.gz", "rt") as file:
        smiles = random.Random(0).sample([row[column] for row in csv.DictReader(file)], 500)
    for text in smiles:
        assert outcome(read_graph, text) == outcome(featurize, text)


def test_features_of_plain_text_equal_the_textbook_loop(shared: Path) -> None:
    with gzip.open(shared / "data/moleculenet/hiv.csv.gz", "rt") as file:
        smiles = [row["smiles"] for row in csv.DictReader(file)][::50]
    readable = [
        text
        for text in smiles
        if Chem.MolFromSmiles(text)
        and not {"*", "-", ">"} & set(Chem.MolToSmiles(Chem.MolFromSmiles(text)))
    ]
    readable = [text for text in readable if not has_own_order(text)]
    assert len(readable) > 500
    for text in readable:
        molecule = featurize(text)
        assert as_plain(molecule.graph) == plain_features(text)
        assert molecule.smiles == Chem.CanonSmiles(text)


def test_a_long_chain_takes_no_more_than_its_length_says() -> None:
    """RDKit's own reader needs seconds for it: what it does for stereo is quadratic."""
    started = time.process_time()
    with pytest.raises(MoleculeError, match="8000 atoms"):
        featurize("NCC(=O)" * 2000, max_atoms=500)
    assert time.process_time() - started < 0.5


def test_many_graphs_are_read_as_one_by_one() -> None:
    texts = [*(f"{'C' * k}O" for k in range(1, 40)), "", "C1CC", "C[C@H](N)O", "*", "N/C=C/C"]
    read = read_graphs(texts)
    assert len(read) == len(texts)
    for text, graph in zip(texts, read, strict=True):
        if isinstance(graph, MoleculeError):
            with pytest.raises(MoleculeError, match=re.escape(str(graph))):
                read_graph(text)
        else:
            assert all(
                torch.equal(left, right)
                for left, right in zip(
                    vars(graph).values(), vars(read_graph(text)).values(), strict=True
                )
            )
    assert [isinstance(graph, MoleculeError) for graph in read[39:]] == [
        True,
        True,
        False,
        True,
        False,
    ]
