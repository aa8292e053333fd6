import json
import os
import random
import subprocess
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem, rdBase

from models.data.bond_graph import BondGraph
from models.data.dmpnn_features import (
    WIDTHS,
    BondMolecule,
    FeaturizerOptions,
    Mode,
    bond_graphs,
    featurize_bonds,
)
from models.data.smiles_parser import parse_as_written
from models.errors import MoleculeError
from tests.models.data.chemprop_oracle import MODES, encode
from tests.strategies import quick

FOLDER = Path(__file__).parent
FLAGS = ("keep_h", "add_h", "ignore_stereo")
ALL_FLAGS = [
    [flag for flag, on in zip(FLAGS, switches, strict=True) if on]
    for switches in product((False, True), repeat=len(FLAGS))
]
HANDMADE = (FOLDER / "odd_molecules.smi").read_text().split()
ELEMENTS = [
    text
    for number in range(1, 119)
    for symbol in [Chem.GetPeriodicTable().GetElementSymbol(number)]
    for text in (f"[{symbol}]", f"[{symbol}+2]", f"C[{symbol}]")
]


def options(mode: str, flags: list[str]) -> FeaturizerOptions:
    return FeaturizerOptions.model_validate({"mode": mode, **dict.fromkeys(flags, True)})


def encoded(molecule: BondMolecule | MoleculeError) -> Any:
    """A molecule as the oracle writes it, an error as None."""
    if isinstance(molecule, MoleculeError):
        return None
    graph = molecule.graph
    return encode(graph.x, graph.edge_index, graph.edge_attr)


def read(smiles: str, mode: Mode = "v2", **keys: Any) -> BondMolecule:
    (molecule,) = featurize_bonds([smiles], FeaturizerOptions(mode=mode), **keys)
    assert isinstance(molecule, BondMolecule)
    return molecule


def rows(graph: BondGraph) -> tuple[list[Any], list[Any]]:
    """Sorted atoms, and sorted bonds with the atoms at their ends: independent of the numbering."""
    x = graph.x.tolist()
    bonds = [
        (x[i], x[j], features)
        for (i, j), features in zip(
            graph.edge_index.T.tolist(), graph.edge_attr.tolist(), strict=True
        )
    ]
    return sorted(x), sorted(bonds)


def same(first: BondGraph, second: BondGraph) -> bool:
    return all(map(torch.equal, vars(first).values(), vars(second).values()))


# --- chemprop's values ---


def test_golden_molecules_have_chemprops_features() -> None:
    golden = json.loads((FOLDER / "dmpnn_golden.json").read_text())
    assert len(golden) == 56
    for smiles, mode, flags, expected in golden:
        (molecule,) = featurize_bonds([smiles], options(mode, flags))
        assert encoded(molecule) == expected, (smiles, mode, flags)


@pytest.fixture(scope="module")
def chemprop() -> str:
    python = os.environ.get("GMERGING_CHEMPROP_PYTHON")
    if not python:
        pytest.skip("needs GMERGING_CHEMPROP_PYTHON, a Python that has chemprop 2.3")
    return python


def ask(python: str, questions: list[Any]) -> list[Any]:
    """Chemprop's answers: see `chemprop_oracle`."""
    script, text = FOLDER / "chemprop_oracle.py", json.dumps(questions)
    command = [python, "-W", "ignore", str(script)]
    done = subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True)
    answers: list[Any] = json.loads(done.stdout)
    return answers


def odd_molecules() -> list[str]:
    """Handmade molecules, other spellings of them, and every element in three states."""
    spellings = []
    with rdBase.BlockLogs():
        for number, smiles in enumerate(HANDMADE):
            if mol := Chem.MolFromSmiles(smiles):
                spellings += Chem.MolToRandomSmilesVect(mol, 2, randomSeed=number + 1)
    return [*HANDMADE, *spellings, *ELEMENTS]


def test_odd_molecules_have_chemprops_features_in_every_mode_and_with_every_flag(
    chemprop: str,
) -> None:
    molecules = odd_molecules()
    assert len(molecules) > 800
    settings = list(product(MODES, ALL_FLAGS))
    questions = [[smiles, mode, flags] for mode, flags in settings for smiles in molecules]
    answers = ask(chemprop, questions)
    ours = [
        encoded(molecule)
        for mode, flags in settings
        for molecule in featurize_bonds(molecules, options(mode, flags))
    ]
    assert sum(answer is not None for answer in answers) > 25_000
    wrong = [
        question
        for question, answer, own in zip(questions, answers, ours, strict=True)
        if answer != own
    ]
    assert not wrong, f"{len(wrong)} of {len(questions)}, {wrong[:5]}"


def test_canonical_reading_is_chemprops_of_the_canonical_smiles(chemprop: str) -> None:
    found = featurize_bonds(odd_molecules(), options("v1", []), "canonical")
    molecules = [molecule for molecule in found if isinstance(molecule, BondMolecule)]
    answers = ask(chemprop, [[molecule.smiles, "v1", []] for molecule in molecules])
    assert answers == [encoded(molecule) for molecule in molecules]
    assert len(answers) > 800


# --- laws ---


SPELLED = ["C[C@H](N)C(=O)O", "F/C=C/[C@@H](Cl)Br", "[O-]C(=O)c1cc[nH]c1", "C[13CH2]O.[Na+]"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("smiles", SPELLED)
@settings(quick, max_examples=10)
@given(st.integers(1, 2**31 - 1))
def test_another_order_of_writing_permutes_rows(mode: Mode, smiles: str, seed: int) -> None:
    mol = Chem.MolFromSmiles(smiles)
    (spelled,) = Chem.MolToRandomSmilesVect(mol, 1, randomSeed=seed)
    (plain, other), (first, second) = (
        featurize_bonds(
            [smiles, spelled], FeaturizerOptions(mode=mode, ignore_stereo=bare), reading
        )
        for bare, reading in ((True, "as_written"), (False, "canonical"))
    )
    for molecule in (plain, other, first, second):
        assert isinstance(molecule, BondMolecule)
    assert rows(plain.graph) == rows(other.graph)
    assert same(first.graph, second.graph)
    assert first.smiles == second.smiles


@settings(quick, max_examples=20)
@given(st.permutations(range(10)))
def test_permuted_atoms_give_permuted_rows(order: list[int]) -> None:
    parsed = parse_as_written("CC(=O)Nc1cc[nH]n1.F")
    renumbered = parsed._replace(mol=Chem.RenumberAtoms(parsed.mol, order))
    plain, permuted = bond_graphs([parsed, renumbered], FeaturizerOptions())
    assert torch.equal(permuted.x, plain.x[torch.tensor(order)])
    assert torch.equal(torch.tensor(order)[permuted.edge_index], plain.edge_index)
    assert torch.equal(permuted.edge_attr, plain.edge_attr)


@pytest.mark.parametrize("mode", MODES)
def test_many_at_a_time_are_what_they_are_one_by_one(mode: Mode) -> None:
    texts = random.Random(0).sample(HANDMADE, 100)
    together = featurize_bonds(texts, FeaturizerOptions(mode=mode), max_atoms=12)
    alone = [featurize_bonds([text], FeaturizerOptions(mode=mode), max_atoms=12) for text in texts]
    errors = 0
    for molecule, (single,) in zip(together, alone, strict=True):
        if isinstance(molecule, MoleculeError):
            assert isinstance(single, MoleculeError)
            assert (molecule.code, str(molecule)) == (single.code, str(single))
            errors += 1
        else:
            assert isinstance(single, BondMolecule)
            assert molecule.smiles == single.smiles
            assert same(molecule.graph, single.graph)
    assert 0 < errors < 40
    assert featurize_bonds([], FeaturizerOptions(mode=mode)) == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("smiles", ["C", "[Na+].[Cl-]", "CCO", "F/C=C/F"])
def test_graphs_are_valid_and_in_order(mode: Mode, smiles: str) -> None:
    graph = read(smiles, mode).graph
    assert same(graph, graph.validate())
    assert (graph.x.shape[1], graph.edge_attr.shape[1]) == WIDTHS[mode]
    assert (graph.x.dtype, graph.edge_index.dtype) == (torch.float32, torch.int64)
    assert graph.edge_attr.dtype == torch.float32


# --- reading ---


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "empty_smiles"),
        (" ", "empty_smiles"),
        ("not a molecule", "smiles_syntax"),
        ("C1CC", "smiles_syntax"),
        ("C\x00C", "smiles_syntax"),
        ("CCO ethanol", "smiles_syntax"),
        ("\u00e9C", "smiles_syntax"),
        ("LFQSCWFLJHTTHZ-UHFFFAOYSA-N", "smiles_syntax"),
        ("CC(C)(C)(C)C", "chemistry"),
        ("c1cccc1", "chemistry"),
        ("[Na+256]", "chemistry"),
        ("C" * 11, "too_many_atoms"),
        ("InChI=1S/nonsense", "inchi_syntax"),
        ("CCO |Sg:n:1:3:ht|", "polymer"),
    ],
)
@pytest.mark.parametrize("reading", ["as_written", "canonical"])
def test_errors_stand_in_place_and_say_what_was_got(text: str, code: str, reading: Any) -> None:
    first, error, last = featurize_bonds(["CCO", text, "C"], FeaturizerOptions(), reading, 10)
    assert [type(found) for found in (first, last)] == [BondMolecule] * 2
    assert isinstance(error, MoleculeError)
    assert error.code == code
    assert "got" in str(error)


@pytest.mark.parametrize(
    ("flags", "atoms"), [([], 2), (["add_h"], 8), (["keep_h"], 3), (["keep_h", "add_h"], 8)]
)
def test_limit_counts_the_atoms_of_the_graph(flags: list[str], atoms: int) -> None:
    text = "[H]CC"
    (enough,) = featurize_bonds([text], options("v2", flags), max_atoms=atoms)
    (less,) = featurize_bonds([text], options("v2", flags), max_atoms=atoms - 1)
    assert isinstance(enough, BondMolecule)
    assert enough.graph.num_nodes == atoms
    assert str(less) == f"got {atoms} atoms, expected at most {atoms - 1}"


ETHANOL = "\n\n\n  3  2  0  0  0  0            999 V2000\n" + "".join(
    [
        "    0.0000    0.0000    0.0000 O   0  0\n",
        "    1.5000    0.0000    0.0000 C   0  0\n",
        "    3.0000    0.0000    0.0000 C   0  0\n",
        "  1  2  1  0\n  2  3  1  0\nM  END\n",
    ]
)


@pytest.mark.parametrize(
    "text", [" OCC\n", ETHANOL, "InChI=1S/C2H6O/c1-2-3/h3H,2H2,1H3", "OCC |$;;$|"]
)
def test_other_formats_are_read(text: str) -> None:
    molecule = read(text)
    assert molecule.smiles == "CCO"
    assert rows(molecule.graph) == rows(read("CCO").graph)


def test_tags_follow_the_spelling_as_written_and_the_molecule_in_canonical_reading() -> None:
    first, second = "C[C@H](N)O", "C[C@@H](O)N"
    assert read(first).smiles == read(second).smiles
    assert rows(read(first).graph) != rows(read(second).graph)
    canonical = read(first, reading="canonical")
    assert same(canonical.graph, read(second, reading="canonical").graph)
    assert same(canonical.graph, read(canonical.smiles).graph)


@pytest.mark.parametrize("reading", ["as_written", "canonical"])
def test_atom_maps_are_not_seen(reading: Any) -> None:
    mapped, plain = read("[CH3:9][C@H:1](N)O", reading=reading), read("C[C@H](N)O", reading=reading)
    assert mapped.smiles == plain.smiles
    assert same(mapped.graph, plain.graph)


def test_ignored_stereo_is_that_of_the_molecule_without_it() -> None:
    bare = FeaturizerOptions(ignore_stereo=True)
    (flat,) = featurize_bonds(["F/C=C/[C@@H](Cl)Br"], bare)
    assert isinstance(flat, BondMolecule)
    assert same(flat.graph, read("FC=CC(Cl)Br").graph)
