"""Every label of every released model says what it means, and its numbers are those of the data."""

import os
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

import models
from merging.training.forest import fingerprint_rows
from models.artifact import load_artifact, read_manifest
from models.data.molecule import collate
from models.data.smiles import read_graphs
from models.manifest import Manifest
from models.meaning import Direction

RELEASES = sorted((Path(models.__file__).parent / "releases").iterdir())
DATA = Path(os.environ.get("GMERGING_DATA") or "../shared/data")
LABELS = {"admet": 701, "moleculenet-gcn": 678, "cora-label-split": 7} | dict.fromkeys(
    ("md17-schnet", "md17-chgnet"), 4
)
"""Number of labels by release."""


def card_score(manifest: Manifest, task: str) -> float | None:
    """The score of the default answers as the model card has it, where it has one."""
    metrics, info = manifest.metrics, manifest.tasks[task]
    if forest := metrics.get("forests", {}).get(task):
        return None if info.main_metric == "mae" else forest["test"][info.meaning.answered_by]  # type: ignore[union-attr]
    if "gmerging_own" in metrics:
        return float(metrics["gmerging_own"]["roc_auc"][task])
    test = metrics.get("test", {}).get(task)
    return None if test is None else float(test[info.main_metric])


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_every_label_is_described_in_full(release: Path) -> None:
    manifest, _ = read_manifest(release)
    described = 0
    for task, info in manifest.tasks.items():
        meaning = info.meaning
        assert meaning is not None, task
        assert min(len(meaning.source), len(meaning.terms)) > 3
        for label, own in zip(info.labels, meaning.labels, strict=True):
            assert own.direction in get_args(Direction)
            assert own.measured.endswith(".")
            assert len(own.name) > 2
            assert (own.one is None) == (info.target in ("regression", "energy_and_forces"))
            assert bool(info.unit(label)) == (own.one is None), "a number has a unit"
            assert own.counts.total > 0
            undefined = own.positives is not None and (
                own.positives.test in (0, own.counts.test) and info.target == "multilabel"
            )
            assert bool(own.scores) != undefined, (task, label)
            for score in own.scores:
                assert score.low <= score.value <= score.high
            if own.positives is not None and own.counts.test:
                assert own.calibration_error is not None
                assert 0 <= own.calibration_error <= 1
            assert info.label_text(label)
            described += 1
    assert described == LABELS[release.name]
    record = manifest.provenance["meanings"]
    assert record["tasks"] == list(manifest.tasks)
    assert set(record["data_sha256"]) == set(manifest.tasks)


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_scores_of_labels_average_to_those_of_the_card(release: Path) -> None:
    manifest, _ = read_manifest(release)
    for task, info in manifest.tasks.items():
        expected = card_score(manifest, task)
        if expected is None or info.meaning is None:
            continue
        scores = [own.scores[0].value for own in info.meaning.labels if own.scores]
        assert np.mean(scores) == pytest.approx(expected, abs=3e-5), task
    if release.name == "cora-label-split":
        for task, accuracy in manifest.metrics["merged"].items():
            classes = manifest.tasks[task].meaning.labels  # type: ignore[union-attr]
            right = sum(
                own.scores[0].value * own.positives.test for own in classes if own.positives
            )
            assert right / classes[0].counts.test == pytest.approx(accuracy, abs=1e-5)
    if manifest.input.kind == "atoms":
        for task, errors in manifest.metrics.get("merged", manifest.metrics).items():
            (own,) = manifest.tasks[task].meaning.labels  # type: ignore[union-attr]
            meV = [1000 * score.value for score in own.scores]
            assert meV == pytest.approx([errors["energy"], errors["forces"]], rel=1e-4)


@pytest.mark.skipif(not (DATA / "admet/more").is_dir(), reason="needs the data")
def test_numbers_agree_with_a_slow_computation() -> None:
    """Skin reactions: 404 molecules of one CSV, answered by network and forest together."""
    table = pd.read_csv(DATA / "admet/more/skin_reaction.csv.gz")
    release = next(path for path in RELEASES if path.name == "admet")
    artifact = load_artifact(release, tasks=["skin_reaction"])
    info = artifact.manifest.tasks["skin_reaction"]
    assert info.meaning is not None
    (own,) = info.meaning.labels
    subsets = table["split"].value_counts()
    assert dict(own.counts) == {name: subsets[name] for name in ("train", "valid", "test")}
    assert own.share_of_ones == pytest.approx(table["y"].mean())

    test = table[table["split"] == "test"].reset_index()
    batch = collate(read_graphs(list(test["smiles"]), strict=False))
    network = (
        artifact.model(batch, ["skin_reaction"]).logits["skin_reaction"].detach()[:, 0].numpy()
    )
    forest = artifact.forests["skin_reaction"]
    rows = fingerprint_rows(list(test["smiles"]), "skin_reaction")
    together = forest.both_scale[0] * (network + forest.outputs(rows)[:, 0]) / 2
    probability = 1 / (1 + np.exp(-together))
    assert info.meaning.answered_by == "both"
    assert own.scores[0].value == pytest.approx(roc_auc_score(test["y"], together), abs=1e-5)
    error, bins = 0.0, np.minimum((probability * 15).astype(int), 14)
    for number in range(15):
        inside = bins == number
        error += abs((probability[inside] - test["y"][inside]).sum()) / len(test)
    assert own.calibration_error == pytest.approx(error, abs=1e-4)

    random, drawn = np.random.default_rng(1), []
    for _ in range(500):
        chosen = random.integers(len(test), size=len(test))
        if test["y"][chosen].nunique() == 2:
            drawn.append(roc_auc_score(test["y"][chosen], together[chosen]))
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert (own.scores[0].low, own.scores[0].high) == pytest.approx((low, high), abs=0.03)
