"""The one supervised loop on molecules: one task fine-tuned, and several trained together."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from merging.config.training import FinetuneConfig, MultitaskConfig, TrainingConfig
from merging.data.molecule_dataset import MoleculeDataset
from merging.data.task_data import Step
from merging.families.molecules import MOLECULES
from merging.run.run import Run
from merging.targets.losses import compute_loss
from merging.targets.metrics import compute_outputs, roc_auc
from merging.training.supervised import TrainedModel, epoch_steps, initial_model, train
from tests.conftest import pico_config

CPU = torch.device("cpu")
TASKS = ("nitrogen", "other")
CAP = 40


def datasets(run: Run, *tasks: str) -> dict[str, MoleculeDataset]:
    return {task: run.dataset(task) for task in tasks or TASKS}


def fit(
    run: Run, tasks: dict[str, Any], settings: TrainingConfig, checkpoint: Path, seed: int = 0
) -> TrainedModel:
    start = run.initial_state(), seed, settings.dropout
    model = initial_model(MOLECULES, pico_config(), tasks, *start)
    return train(model, settings, seed, checkpoint)


def together(run: Run, checkpoint: Path, epochs: int, seed: int = 0) -> TrainedModel:
    settings = MultitaskConfig(
        epochs=epochs, batch_size=16, dropout=0.1, learning_rate=0.01, cap=CAP
    )
    tasks = {task: MOLECULES.joint_data(data, settings) for task, data in datasets(run).items()}
    return fit(run, tasks, settings, checkpoint, seed)


def alone(run: Run, checkpoint: Path, epochs: int, seed: int = 0) -> TrainedModel:
    settings = FinetuneConfig(epochs=epochs, batch_size=16, dropout=0.1, learning_rate=0.01)
    return fit(run, datasets(run, "nitrogen"), settings, checkpoint, seed)


def logits(run: Run, result: TrainedModel, task: str, rows: Tensor) -> Tensor:
    """What a task's head says of some molecules."""
    dataset = run.dataset(task)
    network, head = MOLECULES.load_model(pico_config(), result.network, result.heads[task], dataset)
    forward = partial(MOLECULES.outputs, network, head, info=dataset.info, training=False)
    return compute_outputs(forward, dataset.graphs, rows, CPU)


def assert_same(one: TrainedModel, other: TrainedModel) -> None:
    assert one.network.keys() == other.network.keys()
    assert all(torch.equal(value, other.network[key]) for key, value in one.network.items())
    assert one.heads.keys() == other.heads.keys()
    for task, head in one.heads.items():
        assert all(torch.equal(value, other.heads[task][key]) for key, value in head.items())


@pytest.mark.parametrize("trained", [alone, together])
def test_stopped_and_resumed_is_the_same_run(pico_run: Run, tmp_path: Path, trained: Any) -> None:
    whole = trained(pico_run, tmp_path / "whole.pt", epochs=4)
    trained(pico_run, tmp_path / "halves.pt", epochs=2)
    resumed = trained(pico_run, tmp_path / "halves.pt", epochs=4)
    whole.record.pop("seconds"), resumed.record.pop("seconds")
    assert resumed.record == whole.record
    assert_same(resumed, whole)


@pytest.mark.parametrize("trained", [alone, together])
def test_seed_decides(pico_run: Run, tmp_path: Path, trained: Any) -> None:
    first, again, other = (
        trained(pico_run, tmp_path / f"{k}.pt", epochs=1, seed=seed)
        for k, seed in enumerate((0, 0, 1))
    )
    assert_same(first, again)
    weights = [made.heads["nitrogen"]["weight"] for made in (first, other)]
    assert not torch.equal(*weights)


@pytest.mark.parametrize("trained", [alone, together])
def test_without_a_defined_validation_score_the_last_epoch_is_kept(
    pico_run: Run, tmp_path: Path, trained: Any
) -> None:
    for dataset in datasets(pico_run).values():
        dataset.labels[dataset.split.valid] = 1
    assert trained(pico_run, tmp_path / "state.pt", epochs=2).record["best_epoch"] == 2


def test_one_task_learns_and_keeps_the_best_validated_epoch(pico_run: Run, tmp_path: Path) -> None:
    result = alone(pico_run, tmp_path / "state.pt", epochs=8)
    history = result.record["valid"]
    assert len(history) == 8
    assert result.record["best_epoch"] == history.index(max(history)) + 1
    dataset = pico_run.dataset("nitrogen")
    valid, seen = dataset.split.valid, dataset.split.train
    measured = roc_auc(dataset.labels[valid], logits(pico_run, result, "nitrogen", valid)).mean
    assert measured == pytest.approx(max(history))
    assert roc_auc(dataset.labels[seen], logits(pico_run, result, "nitrogen", seen)).mean > 0.8


def test_patience_ends_a_training(pico_run: Run, tmp_path: Path) -> None:
    settings = FinetuneConfig(epochs=40, batch_size=16, learning_rate=1e-6, patience=2)
    tasks = datasets(pico_run, "nitrogen")
    record = fit(pico_run, tasks, settings, tmp_path / "state.pt").record
    assert record["epochs"] == record["best_epoch"] + 2 < 40


def test_learns_all_tasks(pico_run: Run, tmp_path: Path) -> None:
    early, late = (
        together(pico_run, tmp_path / "early.pt", epochs=1),
        together(pico_run, tmp_path / "late.pt", epochs=8),
    )
    for task, dataset in datasets(pico_run).items():
        labels = dataset.labels[dataset.split.train]
        before, after = (
            logits(pico_run, made, task, dataset.split.train) for made in (early, late)
        )
        assert compute_loss(after, labels, dataset.info) < 0.8 * compute_loss(
            before, labels, dataset.info
        )
        assert roc_auc(labels, after).mean > 0.8


def test_keeps_the_epoch_with_the_best_average(pico_run: Run, tmp_path: Path) -> None:
    # what is learned is wrong here, so that an early epoch is the best
    for dataset in datasets(pico_run).values():
        dataset.labels[dataset.split.valid] = 1 - dataset.labels[dataset.split.valid]
    result = together(pico_run, tmp_path / "state.pt", epochs=4)
    history, by_task = result.record["valid"], result.record["valid_by_task"]
    assert result.record["epochs"] == len(history) == 4
    assert history == pytest.approx(
        [sum(scores) / 2 for scores in zip(*(by_task[task] for task in TASKS), strict=True)]
    )
    best = result.record["best_epoch"] - 1
    assert best == history.index(max(history))
    assert history[-1] < max(history), (
        "the last epoch is the best: the test cannot tell which was kept"
    )
    for task, dataset in datasets(pico_run).items():
        rows = dataset.split.valid
        assert roc_auc(
            dataset.labels[rows], logits(pico_run, result, task, rows)
        ).mean == pytest.approx(by_task[task][best])


def test_result_is_one_network_and_a_head_per_task(pico_run: Run, tmp_path: Path) -> None:
    result = together(pico_run, tmp_path / "state.pt", epochs=1)
    heads = {
        task: {key: tuple(value.shape) for key, value in head.items()}
        for task, head in result.heads.items()
    }
    assert heads == {
        "nitrogen": {"weight": (1, 16), "bias": (1,)},
        "other": {"weight": (2, 16), "bias": (2,)},
    }
    assert {f"network.{key}" for key in result.network} == pico_run.initial_state().keys()
    # of both tasks: three batches each
    assert int(result.network["batch_norms.0.num_batches_tracked"]) == 6
    assert result.record["steps"] == 6


def test_a_task_may_have_any_name(pico_run: Run, tmp_path: Path) -> None:
    named = dict(zip(("train", "train.weight"), datasets(pico_run).values(), strict=True))
    result = fit(pico_run, named, MultitaskConfig(epochs=1), tmp_path / "state.pt")
    assert result.heads["train"]["weight"].shape == (1, 16)
    assert result.heads["train.weight"]["weight"].shape == (2, 16)


def numbered(dataset: MoleculeDataset, most: int) -> MoleculeDataset:
    """With the number of each molecule for a label."""
    rows = torch.arange(len(dataset.graphs)).float()[:, None]
    return replace(dataset, labels=rows, most_per_epoch=most)


def test_epoch_draws_at_most_the_cap_each_molecule_once_and_mixes_tasks(pico_run: Run) -> None:
    sets = datasets(pico_run)
    assert [len(own.split.train) for own in sets.values()] == [60, 60]
    torch.manual_seed(0)
    settings = MultitaskConfig(batch_size=16)
    few = {task: numbered(own, CAP) for task, own in sets.items()}
    first, second = epoch_steps(few, settings), epoch_steps(few, settings)
    for drawn in (first, second):
        assert sorted(len(step.labels) for _, step in drawn) == [8, 8, 16, 16, 16, 16]
        assert [task for task, _ in drawn] != sorted(task for task, _ in drawn)
        for task, own in sets.items():
            rows = rows_of(drawn, task)
            assert len(set(rows)) == len(rows) == CAP
            assert set(rows) <= set(own.split.train.tolist())
    assert set(rows_of(first, "nitrogen")) != set(rows_of(second, "nitrogen"))
    everything = epoch_steps({task: numbered(own, 1000) for task, own in sets.items()}, settings)
    assert sorted(rows_of(everything, "other")) == sorted(sets["other"].split.train.tolist())
    (only,) = (step for task, step in first if len(step.labels) == 8 and task == "other")
    expected = sets["other"].graphs.select(only.labels[:, 0].long())
    assert torch.equal(only.batch.x, expected.x)


def rows_of(drawn: list[tuple[str, Step]], task: str) -> list[float]:
    return torch.cat([step.labels for name, step in drawn if name == task]).flatten().tolist()


def test_one_task_keeps_the_order_of_its_rows(pico_run: Run) -> None:
    """Hu et al. draw once: an epoch is the drawn rows, batch after batch."""
    data = {"nitrogen": numbered(pico_run.dataset("nitrogen"), 1000)}
    torch.manual_seed(3)
    rows = rows_of(epoch_steps(data, FinetuneConfig(batch_size=16)), "nitrogen")
    torch.manual_seed(3)
    train_rows = data["nitrogen"].split.train
    assert rows == train_rows[torch.randperm(len(train_rows))].tolist()


def test_task_without_a_defined_validation_score_is_left_out_of_the_average(
    pico_run: Run, tmp_path: Path
) -> None:
    other = pico_run.dataset("other")
    other.labels[other.split.valid] = 1
    record = together(pico_run, tmp_path / "state.pt", epochs=2).record
    assert record["valid"] == record["valid_by_task"]["nitrogen"]
    assert all(math.isnan(score) for score in record["valid_by_task"]["other"])


@pytest.mark.parametrize("wrong", [{"cap": 0}, {"dropout": 1.0}, {"epoch": 3}])
def test_settings_that_do_not_fit_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        MultitaskConfig.model_validate(wrong)


def test_the_last_epoch_is_kept_where_that_is_said(pico_run: Run, tmp_path: Path) -> None:
    # What is learnt is wrong on the validation rows, so that an early epoch is the best.
    dataset = pico_run.dataset("nitrogen")
    dataset.labels[dataset.split.valid] = 1 - dataset.labels[dataset.split.valid]
    settings = FinetuneConfig(
        epochs=5, batch_size=16, dropout=0.1, learning_rate=0.01, schedule="cosine", keep="last"
    )
    tasks = datasets(pico_run, "nitrogen")
    kept = fit(pico_run, tasks, settings, tmp_path / "state.pt")
    history, rows = kept.record["valid"], dataset.split.valid
    assert kept.record["best_epoch"] < 5
    measured = roc_auc(dataset.labels[rows], logits(pico_run, kept, "nitrogen", rows)).mean
    assert measured == pytest.approx(history[-1])
    assert measured < max(history)
    # A run that stopped before the result was stored finds its last epoch again.
    assert_same(kept, fit(pico_run, tasks, settings, tmp_path / "state.pt"))


def test_the_learning_rate_falls_where_that_is_said(pico_run: Run, tmp_path: Path) -> None:
    tasks = datasets(pico_run, "nitrogen")
    common = {"epochs": 3, "batch_size": 16, "learning_rate": 0.01, "keep": "last"}
    settings = [FinetuneConfig(**common, schedule=name) for name in ("constant", "cosine")]
    constant, cosine = (
        fit(pico_run, tasks, chosen, tmp_path / f"{chosen.schedule}.pt") for chosen in settings
    )
    assert constant.record["valid"][0] == cosine.record["valid"][0]  # the first epoch has the rate
    weights = [made.heads["nitrogen"]["weight"] for made in (constant, cosine)]
    assert not torch.equal(*weights)
