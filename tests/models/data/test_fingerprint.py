import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem, rdBase

from models.data import fingerprint as module
from models.data.fingerprint import (
    BITS,
    COLUMNS,
    DESCRIPTORS,
    WIDTH,
    fingerprint,
    fingerprints_of,
    neutralise,
)
from models.data.molecule import MolGraph, collate
from models.data.smiles import featurize, featurize_all, read_smiles
from tests.strategies import quick

MOLECULES = (
    "CC(=O)Oc1ccccc1C(=O)O",
    "CN1C=NC2=C1C(=O)N(C(=O)N2C)C",
    "C[N+](C)(C)CC([O-])=O",
    "OC(=O)[C@H](N)Cc1c[nH]c2ccccc12",
    "[NH3+]CC([O-])=O",
    "O=[N+]([O-])c1ccc(Cl)cc1/C=C/Br",
    "[Na+].[O-]C(=O)c1ccccc1",
    "CC12CCC3C(C1CCC2O)CCC4=CC(=O)CCC34C",
    "C1CC2(CC1)OCCO2",
    "FC(F)(F)c1ccc(S(=O)(=O)N2CCN(CC2)c2ccncc2)cc1I",
    "[Cu+2].[O-]C(=O)C",
    "N#Cc1c(-c2ccccc2)c(C#N)c(=S)n(C2OC(CO)C(O)C(O)C2O)c1O",
    "CC(C)OCNC(=N)NC#N",
    "C",
)


def row_of(smiles: str, *, strict: bool = True) -> np.ndarray:
    (molecule,) = featurize_all([smiles], strict=strict, fingerprints=True)
    return molecule.graph.fingerprint.numpy()  # type: ignore[union-attr, attr-defined]


def descriptor(smiles: str, name: str) -> float:
    return float(row_of(smiles)[BITS + DESCRIPTORS.index(name)])


@quick
@given(st.sampled_from(MOLECULES), st.integers(0, 2**16))
def test_the_spelling_does_not_matter(smiles: str, seed: int) -> None:
    mol = Chem.MolFromSmiles(smiles)
    order = list(range(mol.GetNumAtoms()))
    random.Random(seed).shuffle(order)
    spelled = Chem.MolToSmiles(Chem.RenumberAtoms(mol, order), canonical=False)
    assert np.array_equal(row_of(spelled), row_of(smiles))
    assert np.array_equal(row_of(spelled, strict=False), row_of(smiles))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("CC(=O)O", "CC(=O)[O-]"),
        ("CCN", "CC[NH3+]"),
        ("NCC(=O)O", "[NH3+]CC([O-])=O"),
        ("c1cc[nH+]cc1", "c1ccncc1"),
        ("[CH3:7][OH:2]", "CO"),
        ("[2H]C([2H])O[13CH3]", "COC"),
        ("N[C@@H](C)O", "NC(C)O"),
        ("F/C=C/F", "FC=CF"),
    ],
)
def test_charges_maps_isotopes_and_stereo_do_not_matter(first: str, second: str) -> None:
    assert np.array_equal(row_of(first), row_of(second))


@pytest.mark.parametrize(
    ("first", "second"),
    [("CC(=O)O", "CC(=O)OC"), ("CCO", "CCN"), ("CC(=O)O", "[Na+].CC(=O)[O-]"), ("CC", "CCC")],
)
def test_other_molecules_have_other_fingerprints(first: str, second: str) -> None:
    assert not np.array_equal(row_of(first), row_of(second))


def test_charges_that_belong_to_the_molecule_stay() -> None:
    assert descriptor("C[N+](C)(C)C", "FormalCharge") == 1
    assert descriptor("CC(=O)[O-]", "FormalCharge") == 0
    nitro = read_smiles("C[N+](=O)[O-]")
    assert Chem.MolToSmiles(neutralise(nitro)) == "C[N+](=O)[O-]"


def test_columns_are_counts_and_named_descriptors() -> None:
    row = row_of("CC(=O)Oc1ccccc1C(=O)O")
    assert (row.shape, row.dtype) == ((WIDTH,), np.float32)
    assert [(block.start, block.stop) for block in COLUMNS.values()] == [(0, BITS), (BITS, WIDTH)]
    assert row[:BITS].max() > 1  # a count, not a bit
    aspirin = dict(zip(DESCRIPTORS, row[BITS:].tolist(), strict=True))
    assert aspirin["MolWt"] == pytest.approx(180.159, abs=1e-3)
    assert aspirin["TPSA"] == pytest.approx(63.60, abs=1e-3)
    assert aspirin["HeavyCrippen1"] == pytest.approx(0.1511, abs=1e-3)
    assert (aspirin["Rings"], aspirin["HBD"], aspirin["HeavyAtoms"]) == (1, 1, 13)
    assert len(set(DESCRIPTORS)) == len(DESCRIPTORS) == WIDTH - BITS


def test_the_check_for_charges_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with rdBase.BlockLogs():
        always = [fingerprint(read_smiles(smiles)) for smiles in MOLECULES]
        known = [fingerprint(read_smiles(smiles), smiles) for smiles in MOLECULES]
        assert all(map(np.array_equal, always, known))
        monkeypatch.setattr(module, "neutralise", lambda mol: pytest.fail("it has no charge"))
        fingerprint(read_smiles("C-C#C"), "C-C#C")


def test_reading_with_fingerprints_changes_no_graph() -> None:
    plain = featurize_all(MOLECULES)
    read = featurize_all(MOLECULES, fingerprints=True)
    for first, second in zip(plain, read, strict=True):
        assert not isinstance(first, Exception)
        assert not isinstance(second, Exception)
        assert first.smiles == second.smiles
        for name in ("x", "edge_index", "edge_attr"):
            assert torch.equal(getattr(first.graph, name), getattr(second.graph, name))
    batch = collate([molecule.graph for molecule in read])  # type: ignore[union-attr]
    assert batch.num_graphs == len(MOLECULES)


def test_unreadable_molecules_are_errors_with_fingerprints_too() -> None:
    first, second = featurize_all(["C1", "C"], fingerprints=True)
    assert isinstance(first, Exception)
    assert not isinstance(second, Exception)


def test_graphs_without_a_fingerprint_are_left_out() -> None:
    (with_row,) = featurize_all(["CCO"], fingerprints=True)
    graphs: list[MolGraph] = [featurize("C").graph, with_row.graph]  # type: ignore[union-attr]
    positions, rows = fingerprints_of(graphs)
    assert positions == [1]
    assert np.array_equal(rows[0], row_of("OCC"))
    positions, rows = fingerprints_of(graphs[:1])
    assert (positions, rows.shape) == ([], (0, WIDTH))
