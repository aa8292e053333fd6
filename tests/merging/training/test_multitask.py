import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from merging.data.molecule_dataset import MoleculeDataset
from merging.run.run import Run
from merging.training.losses import loss
from merging.training.metrics import predict, roc_auc
from merging.training.multitask import (
    MultitaskResult,
    classifier_state,
    draw_batches,
    train_multitask,
)
from merging.training.settings import MultitaskConfig
from models.classifier import GraphClassifier
from models.state_dict import load_tensors
from models.task import TaskInfo
from tests.conftest import pico_config

CPU = torch.device("cpu")
TASKS = ("nitrogen", "other")


def datasets(run: Run) -> dict[str, MoleculeDataset]:
    return {task: run.dataset(task) for task in TASKS}


def train(run: Run, checkpoint: Path, epochs: int, seed: int = 0) -> MultitaskResult:
    settings = MultitaskConfig(
        epochs=epochs, batch_size=16, dropout=0.1, learning_rate=0.01, cap=40
    )
    return train_multitask(
        datasets(run), run.pretrained(), pico_config(), settings, seed, checkpoint, CPU
    )


def logits(run: Run, result: MultitaskResult, task: str, rows: Tensor) -> Tensor:
    """Of the task's part of the result, as any fine-tuned model's."""
    dataset = run.dataset(task)
    model = GraphClassifier(pico_config(), len(dataset.label_names)).eval()
    load_tensors(model, classifier_state(result.tensors, task), "test")
    return predict(model, dataset.graphs, rows, CPU)


def test_learns_all_tasks(pico_run: Run, tmp_path: Path) -> None:
    early, late = (
        train(pico_run, tmp_path / "early.pt", epochs=1),
        train(pico_run, tmp_path / "late.pt", epochs=8),
    )
    for task, dataset in datasets(pico_run).items():
        labels = dataset.labels[dataset.split.train]
        before, after = (
            logits(pico_run, each, task, dataset.split.train) for each in (early, late)
        )
        assert loss(after, labels, dataset.info) < 0.8 * loss(before, labels, dataset.info)
        assert roc_auc(labels, after).mean > 0.8


def test_keeps_the_epoch_with_the_best_average(pico_run: Run, tmp_path: Path) -> None:
    # what is learned is wrong here, so that an early epoch is the best
    for dataset in datasets(pico_run).values():
        dataset.labels[dataset.split.valid] = 1 - dataset.labels[dataset.split.valid]
    result = train(pico_run, tmp_path / "state.pt", epochs=4)
    history, by_task = result.record["valid_roc_auc"], result.record["valid_roc_auc_by_task"]
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


def test_a_regression_is_answered_in_the_units_of_its_labels(pico_run: Run, tmp_path: Path) -> None:
    """Labels of 100 y + 7 are learnt as y is, beside a task that stays as it was."""
    settings = MultitaskConfig(epochs=2, batch_size=16, dropout=0.1)
    nitrogen, other = datasets(pico_run).values()
    info = TaskInfo(labels=other.label_names, target="regression")
    heads = {}
    for name, labels in (("plain", other.labels), ("scaled", 100 * other.labels + 7)):
        both = {"nitrogen": nitrogen, "other": replace(other, info=info, labels=labels)}
        checkpoint = tmp_path / f"{name}.pt"
        result = train_multitask(
            both, pico_run.pretrained(), pico_config(), settings, 0, checkpoint, CPU
        )
        assert len(result.record["valid_score"]) == 2
        heads[name] = result.tensors
    weight, bias = (f"heads.other.{kind}" for kind in ("weight", "bias"))
    close = {"rtol": 1e-3, "atol": 1e-2}
    torch.testing.assert_close(heads["scaled"][weight], 100 * heads["plain"][weight], **close)
    torch.testing.assert_close(heads["scaled"][bias], 100 * heads["plain"][bias] + 7, **close)


def test_stopped_and_resumed_is_the_same_run(pico_run: Run, tmp_path: Path) -> None:
    whole = train(pico_run, tmp_path / "whole.pt", epochs=4)
    train(pico_run, tmp_path / "parts.pt", epochs=2)
    parts = train(pico_run, tmp_path / "parts.pt", epochs=4)
    whole.record.pop("seconds"), parts.record.pop("seconds")
    assert parts.record == whole.record
    assert parts.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(parts.tensors[key], value) for key, value in whole.tensors.items())


def test_seed_decides(pico_run: Run, tmp_path: Path) -> None:
    runs = [
        train(pico_run, tmp_path / f"{k}.pt", epochs=1, seed=seed).tensors["heads.other.weight"]
        for k, seed in enumerate((0, 0, 1))
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_tensors_are_one_backbone_and_a_head_per_task(pico_run: Run, tmp_path: Path) -> None:
    tensors = train(pico_run, tmp_path / "state.pt", epochs=1).tensors
    heads = {
        key: tuple(value.shape) for key, value in tensors.items() if not key.startswith("backbone.")
    }
    assert heads == {
        "heads.nitrogen.weight": (1, 16),
        "heads.nitrogen.bias": (1,),
        "heads.other.weight": (2, 16),
        "heads.other.bias": (2,),
    }
    assert {
        key.removeprefix("backbone.") for key in tensors if key.startswith("backbone.")
    } == pico_run.pretrained().keys()
    # of both tasks: three batches each
    assert int(tensors["backbone.batch_norms.0.num_batches_tracked"]) == 6


def test_a_task_may_have_any_name(pico_run: Run, tmp_path: Path) -> None:
    named = dict(zip(("train", "train.weight"), datasets(pico_run).values(), strict=True))
    result = train_multitask(
        named,
        pico_run.pretrained(),
        pico_config(),
        MultitaskConfig(epochs=1),
        0,
        tmp_path / "state.pt",
        CPU,
    )
    assert classifier_state(result.tensors, "train")["head.weight"].shape == (1, 16)
    assert classifier_state(result.tensors, "train.weight")["head.weight"].shape == (2, 16)


def test_epoch_draws_at_most_the_cap_each_molecule_once_and_mixes_tasks(pico_run: Run) -> None:
    sets = list(datasets(pico_run).values())
    sizes = [len(each.split.train) for each in sets]
    assert sizes == [60, 60]
    torch.manual_seed(0)
    first, second = draw_batches(sets, 40, 16), draw_batches(sets, 40, 16)
    for drawn in (first, second):
        assert sorted(len(part) for _, part in drawn) == [8, 8, 16, 16, 16, 16]
        assert [position for position, _ in drawn] != sorted(position for position, _ in drawn)
        for position, dataset in enumerate(sets):
            rows = torch.cat([part for each, part in drawn if each == position]).tolist()
            assert len(set(rows)) == 40
            assert set(rows) <= set(dataset.split.train.tolist())
    chosen = [
        {int(row) for position, part in drawn if position == 0 for row in part}
        for drawn in (first, second)
    ]
    assert chosen[0] != chosen[1]  # another sample in each epoch
    everything = torch.cat(
        [part for position, part in draw_batches(sets, 1000, 16) if position == 1]
    )
    assert torch.equal(everything.sort().values, sets[1].split.train.sort().values)


def test_without_a_defined_validation_score_the_last_epoch_is_kept(
    pico_run: Run, tmp_path: Path
) -> None:
    for dataset in datasets(pico_run).values():
        dataset.labels[dataset.split.valid] = 1
    result = train(pico_run, tmp_path / "state.pt", epochs=2)
    assert result.record["best_epoch"] == 2


def test_task_without_a_defined_validation_score_is_left_out_of_the_average(
    pico_run: Run, tmp_path: Path
) -> None:
    other = pico_run.dataset("other")
    other.labels[other.split.valid] = 1
    record = train(pico_run, tmp_path / "state.pt", epochs=2).record
    assert record["valid_roc_auc"] == record["valid_roc_auc_by_task"]["nitrogen"]
    assert all(math.isnan(each) for each in record["valid_roc_auc_by_task"]["other"])


@pytest.mark.parametrize("wrong", [{"cap": 0}, {"dropout": 1.0}, {"epoch": 3}])
def test_settings_that_do_not_fit_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        MultitaskConfig.model_validate(wrong)
