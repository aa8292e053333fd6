"""The training loop: stopped and resumed, its best epoch, and what it refuses."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from merging.training.loop import ResumableTraining
from models.errors import DataError, TrainingError

CPU = torch.device("cpu")


def training(checkpoint: Path, seed: int = 0) -> tuple[nn.Linear, ResumableTraining]:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    return model, ResumableTraining(model, optimizer, checkpoint, seed, CPU)


def run(checkpoint: Path, total: int, seed: int = 0, last: int | None = None) -> dict[str, Tensor]:
    """Random steps, and a stop in the epoch after `last`; the weights."""
    model, loop = training(checkpoint, seed)
    for epoch in loop.epochs(total, "test"):
        if last is not None and epoch > last:
            break
        optimizer = loop._optimizer
        optimizer.zero_grad()
        loss = model(torch.randn(8, 3)).square().mean()
        loss.backward()
        optimizer.step()
        loop.history.append(float(loss.detach()))
        loop.kept["drawn"] = torch.rand(2)
    return {key: value.clone() for key, value in model.state_dict().items()}


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole.pt", 6)
    run(tmp_path / "halves.pt", 6, last=3)
    _, loop = training(tmp_path / "halves.pt")
    assert len(loop.history) == 3
    resumed = run(tmp_path / "halves.pt", 6)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    (_, first), (_, second) = training(tmp_path / "whole.pt"), training(tmp_path / "halves.pt")
    assert first.history == second.history
    assert len(first.history) == 6
    assert torch.equal(first.kept["drawn"], second.kept["drawn"])
    assert first.seconds > 0


def test_a_finished_training_has_no_epoch_left(tmp_path: Path) -> None:
    run(tmp_path / "a.pt", 2)
    _, loop = training(tmp_path / "a.pt")
    assert list(loop.epochs(2, "test")) == []
    assert [epoch for epoch in loop.epochs(3, "test") if loop.history.append(0.0) is None] == [3]


def test_epochs_and_seeds_draw_differently(tmp_path: Path) -> None:
    draws = set()
    for seed in (0, 1):
        _, loop = training(tmp_path / f"{seed}.pt", seed)
        for _ in loop.epochs(3, "test"):
            draws.add(float(torch.rand(())))
            loop.history.append(0.0)
    assert len(draws) == 6


def test_the_best_epoch_is_kept_and_the_earliest_of_equals(tmp_path: Path) -> None:
    model, loop = training(tmp_path / "a.pt")
    scores = [math.nan, 0.2, 0.7, 0.5, 0.7, math.nan]
    for epoch in loop.epochs(len(scores), "test"):
        with torch.no_grad():
            model.bias.fill_(epoch)
        loop.keep_best(epoch, scores[epoch - 1])
    assert loop.kept["best_epoch"] == 3
    assert loop.kept["best"]["bias"].tolist() == [3]
    _, resumed = training(tmp_path / "a.pt")
    assert resumed.kept["best"]["bias"].tolist() == [3]
    assert [math.isnan(score) for score in resumed.history] == [True] + [False] * 4 + [True]


def test_without_any_score_the_latest_model_is_kept(tmp_path: Path) -> None:
    model, loop = training(tmp_path / "a.pt")
    for epoch in loop.epochs(2, "test"):
        with torch.no_grad():
            model.bias.fill_(epoch)
        loop.keep_best(epoch, math.nan)
    assert loop.kept["best_epoch"] == 2
    assert loop.kept["best"]["bias"].tolist() == [2]


def test_weights_that_are_not_finite_end_the_training_and_are_not_saved(tmp_path: Path) -> None:
    model, loop = training(tmp_path / "a.pt")
    epochs = loop.epochs(3, "test")
    next(epochs)
    loop.history.append(0.0)
    next(epochs)
    loop.history.append(0.0)
    with torch.no_grad():
        model.weight[0, 0] = math.inf
    message = "epoch 2: got weight that is not finite, expected finite numbers; a smaller"
    with pytest.raises(TrainingError, match=message):
        next(epochs)
    assert len(training(tmp_path / "a.pt")[1].history) == 1


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"a\.pt: got a damaged file .*delete it"):
        training(tmp_path / "a.pt")
