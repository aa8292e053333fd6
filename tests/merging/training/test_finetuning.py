from pathlib import Path

import pytest
import torch

from merging.run.run import Run
from merging.training.finetuning import FinetuneResult, finetune
from merging.training.metrics import predict, roc_auc
from merging.training.settings import FinetuneConfig
from models.classifier import GraphClassifier
from models.state_dict import load_tensors
from tests.conftest import pico_config


def train(run: Run, checkpoint: Path, epochs: int, seed: int = 0) -> FinetuneResult:
    settings = FinetuneConfig(epochs=epochs, batch_size=16, dropout=0.1, learning_rate=0.01)
    return finetune(
        run.dataset("nitrogen"),
        run.pretrained(),
        pico_config(),
        settings,
        seed,
        checkpoint,
        torch.device("cpu"),
    )


def test_learns_and_keeps_the_best_validated_epoch(pico_run: Run, tmp_path: Path) -> None:
    result = train(pico_run, tmp_path / "state.pt", epochs=8)
    history = result.record["valid_roc_auc"]
    assert len(history) == 8
    assert result.record["best_epoch"] == history.index(max(history)) + 1
    model = GraphClassifier(pico_config(), 1).eval()
    load_tensors(model, result.tensors, "test")
    dataset = pico_run.dataset("nitrogen")
    rows = dataset.split.valid
    assert roc_auc(
        dataset.labels[rows], predict(model, dataset.graphs, rows, torch.device("cpu"))
    ).mean == pytest.approx(max(history))
    train_rows = dataset.split.train
    assert (
        roc_auc(
            dataset.labels[train_rows],
            predict(model, dataset.graphs, train_rows, torch.device("cpu")),
        ).mean
        > 0.8
    )


def test_stopped_and_resumed_is_the_same_run(pico_run: Run, tmp_path: Path) -> None:
    whole = train(pico_run, tmp_path / "whole.pt", epochs=4)
    train(pico_run, tmp_path / "parts.pt", epochs=2)
    parts = train(pico_run, tmp_path / "parts.pt", epochs=4)
    assert parts.record["valid_roc_auc"] == whole.record["valid_roc_auc"]
    assert all(torch.equal(parts.tensors[key], value) for key, value in whole.tensors.items())


def test_seed_decides(pico_run: Run, tmp_path: Path) -> None:
    runs = [
        train(pico_run, tmp_path / f"{k}.pt", epochs=1, seed=seed).tensors["head.weight"]
        for k, seed in enumerate((0, 0, 1))
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_without_a_defined_validation_score_the_last_epoch_is_kept(
    pico_run: Run, tmp_path: Path
) -> None:
    dataset = pico_run.dataset("nitrogen")
    dataset.labels[dataset.split.valid] = 1
    settings = FinetuneConfig(epochs=2, batch_size=16)
    result = finetune(
        dataset,
        pico_run.pretrained(),
        pico_config(),
        settings,
        0,
        tmp_path / "state.pt",
        torch.device("cpu"),
    )
    assert result.record["best_epoch"] == 2
