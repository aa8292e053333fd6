from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from merging.data.molecule_dataset import MoleculeDataset, load_dataset, load_smiles
from merging.data.molecule_tables import DatasetSpec
from merging.families.molecule_config import MoleculeConfig
from merging.run.run import Run
from merging.studies.forests import ecfp4, fit_predict, neutralise
from merging.targets.metrics import roc_auc
from models.data.smiles import featurize
from models.errors import DataError, InvalidInputError
from models.task import TaskInfo
from tests.merging.conftest import molecules, write_csv


def other(run: Run) -> MoleculeDataset:
    return run.dataset("other")


def test_fingerprint_is_of_radius_two_whatever_the_spelling() -> None:
    benzoic, spelled, ester = ecfp4(["OC(=O)c1ccccc1", "c1ccccc1C(O)=O", "COC(=O)c1ccccc1"])
    assert np.array_equal(benzoic, spelled)
    assert not np.array_equal(benzoic, ester)
    assert benzoic.shape == (2048,)
    assert set(benzoic.tolist()) == {0, 1}
    # ethane: a carbon, and a carbon with its neighbour. Propane has the end with its neighbour, the
    # middle, and radius two is the whole molecule
    assert [int(row.sum()) for row in ecfp4(["C", "CC", "CCC"])] == [1, 2, 4]


def test_reads_what_fails_the_check_of_valences() -> None:
    # nitrogen, methyl, and either with its neighbours
    assert ecfp4(["CN(C)(C)(C)C"]).sum() == 4


@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        ("CC[NH3+]", "CCN"),
        ("CC(=O)[O-].[Na+]", "CC(=O)[O-].[Na+]"),
        ("CC(=O)[O-]", "CC(=O)O"),
        ("[NH3+]CC(=O)[O-]", "NCC(=O)O"),
        ("C[N+](C)(C)C", "C[N+](C)(C)C"),
        ("C[N+](=O)[O-]", "C[N+](=O)[O-]"),
        ("CN(C)(C)(C)C", "CN(C)(C)(C)C"),
    ],
)
def test_only_charges_that_protons_make_are_taken_away(drawn: str, expected: str) -> None:
    assert neutralise(drawn) == expected


def test_scores_separate_what_a_fingerprint_sees(pico_run: Run) -> None:
    dataset = other(pico_run)
    scores = fit_predict(dataset, molecules(), trees=50, seed=0)
    for subset, rows in (("valid", dataset.split.valid), ("test", dataset.split.test)):
        assert scores[subset].shape == (len(rows), 2)
        assert scores[subset].dtype == torch.float32
        assert roc_auc(dataset.labels[rows], scores[subset]).mean > 0.9


def test_seed_decides_and_the_number_of_threads_does_not(pico_run: Run) -> None:
    dataset = other(pico_run)
    first, again, threads, another = (
        fit_predict(dataset, molecules(), 20, seed, jobs)
        for seed, jobs in ((0, 1), (0, 1), (0, 2), (1, 1))
    )
    assert torch.equal(first["test"], again["test"])
    assert torch.equal(first["test"], threads["test"])
    assert not torch.equal(first["test"], another["test"])


def test_trains_on_known_labels_of_the_training_rows_only(pico_run: Run) -> None:
    dataset = other(pico_run)
    expected = fit_predict(dataset, molecules(), trees=20, seed=0)
    held_out = dataset.labels.clone()
    for rows in (dataset.split.valid, dataset.split.test):
        held_out[rows] = 1 - held_out[rows]
    assert torch.equal(
        fit_predict(replace(dataset, labels=held_out), molecules(), trees=20, seed=0)["test"],
        expected["test"],
    )
    # a molecule without label counts as absent: the same forest as without it
    split = replace(
        dataset.split, train=dataset.split.train[~dataset.labels[dataset.split.train, 1].isnan()]
    )
    without = fit_predict(replace(dataset, split=split), molecules(), trees=20, seed=0)
    assert torch.equal(without["test"][:, 1], expected["test"][:, 1])
    assert not torch.equal(without["test"][:, 0], expected["test"][:, 0])


def test_label_with_one_class_is_a_constant(pico_run: Run) -> None:
    dataset = other(pico_run)
    train = dataset.split.train
    for values, expected in ((0.0, 0.0), (1.0, 1.0), (torch.nan, 0.5)):
        labels = dataset.labels.clone()
        labels[train, 0] = values
        scores = fit_predict(replace(dataset, labels=labels), molecules(), trees=5, seed=0)
        assert set(scores["valid"][:, 0].tolist()) == {expected}
        assert len(scores["valid"][:, 1].unique()) > 1


def test_smiles_must_be_one_per_graph(pico_run: Run) -> None:
    with pytest.raises(InvalidInputError, match="got 79, expected one per graph of 'other', 80"):
        fit_predict(other(pico_run), molecules()[1:], trees=5, seed=0)


def test_smiles_of_the_kept_rows_are_read_again(tmp_path: Path) -> None:
    spec, kept = DatasetSpec(file="own.csv"), [*molecules(), "CN(C)(C)(C)C"]
    rows = [*kept[:40], "", "C1CC", *kept[40:], "not a molecule"]
    labelled = [(smiles, str(k % 2)) for k, smiles in enumerate(rows)]
    write_csv(tmp_path / "own.csv", "smiles", ("y",), labelled)
    dataset = load_dataset("own", spec, tmp_path, tmp_path / "cache")
    smiles = load_smiles(dataset, spec, tmp_path, tmp_path / "cache")
    assert smiles == kept
    assert [
        featurize(molecule, strict=False).graph.num_nodes for molecule in smiles
    ] == dataset.graphs.node_counts.tolist()


def test_smiles_of_another_file_are_refused(pico: MoleculeConfig, tmp_path: Path) -> None:
    spec = pico.dataset_for("other")
    dataset = load_dataset("other", spec, tmp_path / "data", tmp_path / "cache")
    assert load_smiles(dataset, spec, tmp_path / "data", tmp_path / "cache") == molecules()
    write_csv(
        tmp_path / "data/other.csv",
        "mol",
        ("has_o", "has_halogen"),
        [(smiles, "1", "0") for smiles in reversed(molecules())],
    )
    with pytest.raises(DataError, match="got another file"):
        load_smiles(dataset, spec, tmp_path / "data", tmp_path / "cache")


def test_forests_of_numbers_answer_in_their_units(pico_run: Run) -> None:
    dataset = other(pico_run)
    info = TaskInfo(labels=("a", "b"), target="regression")
    numbers = replace(dataset, info=info, labels=20 * dataset.labels + 300)
    scores = fit_predict(numbers, molecules(), trees=20, seed=0)["test"]
    assert scores.shape == (len(dataset.split.test), 2)
    assert 300 <= float(scores.min()) < float(scores.max()) <= 320
    known = numbers.labels[dataset.split.test, 0]
    assert float((scores[:, 0] - known).abs().mean()) < 4  # a guess of the mean errs by 8 or more


def test_a_forest_of_classes_gives_a_probability_for_each(pico_run: Run) -> None:
    dataset = other(pico_run)
    labels = dataset.labels[:, 0].long() + 1  # classes 1 and 2; nothing is known of class 0
    labels[dataset.split.train[::7]] = -1
    info = TaskInfo(labels=("none", "without", "with"), target="multiclass")
    classes = replace(dataset, info=info, labels=labels)
    scores = fit_predict(classes, molecules(), trees=20, seed=0)["test"]
    assert scores.sum(1).tolist() == pytest.approx([1.0] * len(scores))
    assert not scores[:, 0].any()
    right = scores.argmax(1) == labels[dataset.split.test]
    assert float(right.double().mean()) > 0.8
