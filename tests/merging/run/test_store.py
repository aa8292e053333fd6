"""A result is made by one run at a time; if that run is killed, the next one resumes it."""

import errno
import fcntl
import math
import multiprocessing
import os
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch
from torch import nn

from merging.data import lease
from merging.data.files import write_tensors
from merging.data.lease import Watch
from merging.run.store import ResultStore, StageResult
from merging.training.loop import ResumableTraining
from models.errors import DataError, TrainingError

EPOCHS = 5


def train(checkpoint: Path, seen: list[int], stop_at: int = 0) -> StageResult:
    """Count epochs in one weight; kill this process in epoch `stop_at`."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    training = ResumableTraining(
        model, torch.optim.SGD(model.parameters()), checkpoint, 0, torch.device("cpu")
    )
    for epoch in training.epochs(EPOCHS, "test"):
        seen.append(epoch)
        if epoch == stop_at:
            os.kill(os.getpid(), signal.SIGKILL)
        with torch.no_grad():
            model.weight += 1
        training.history.append(0.0)
    return StageResult({"weight": model.weight.detach()}, {"epochs": len(training.history)})


def test_two_runs_of_one_result_make_it_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = [0.1, *[0.05] * 1000]
    monkeypatch.setattr(lease, "pauses_of_waiting", lambda: iter(pauses))
    monkeypatch.setattr(lease, "SPOKEN_PAUSE", 0.1)
    store, seen = ResultStore(tmp_path), []
    inside, go_on = threading.Event(), threading.Event()

    def make(checkpoint: Path) -> StageResult:
        inside.set()
        assert go_on.wait(20)
        return train(checkpoint, seen)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(store.make, "a/b-seed0-key", "a/b", make)
        assert inside.wait(20)
        second = pool.submit(store.make, "a/b-seed0-key", "a/b", make)
        # nobody waits for another's result
        other = store.make("a/c-seed0-key", "a/c", lambda checkpoint: train(checkpoint, []))
        claim, held = Watch().look(tmp_path / "a/b-seed0-key")
        assert held
        assert claim is not None
        assert claim.owner == f"process {os.getpid()} on {socket.gethostname()}"
        time.sleep(0.3)  # the second run looks a few times, and says what it waits for
        assert not second.done()
        go_on.set()
        assert (
            first.result(20).tensors["weight"]
            == second.result(20).tensors["weight"]
            == EPOCHS
            == other.tensors["weight"]
        )
    assert seen == [1, 2, 3, 4, 5]
    said = rf"waiting for .*b-seed0-key, made by process {os.getpid()} on "
    assert re.search(said, capsys.readouterr().err)
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        "b-seed0-key.safetensors",
        "c-seed0-key.safetensors",
    }


def _killed(folder: Path, started: Event) -> None:
    started.set()
    ResultStore(folder).make(
        "a-seed0-key", "a", lambda checkpoint: train(checkpoint, [], stop_at=4)
    )


def test_a_killed_run_is_gone_on_with(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    killed = context.Process(target=_killed, args=(tmp_path, started))
    killed.start()
    killed.join(60)
    assert started.is_set()
    assert killed.exitcode == -signal.SIGKILL
    assert (tmp_path / "a-seed0-key.resume.pt").is_file()
    seen: list[int] = []
    piece = ResultStore(tmp_path).make(
        "a-seed0-key", "a", lambda checkpoint: train(checkpoint, seen)
    )
    assert seen == [4, 5]
    assert piece.tensors["weight"] == EPOCHS
    assert not (tmp_path / "a-seed0-key.resume.pt").exists()


def test_an_error_gives_the_lease_back(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)

    def broken(checkpoint: Path) -> StageResult:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        store.make("a-seed0-key", "a", broken)
    assert store.make("a-seed0-key", "a", lambda checkpoint: train(checkpoint, [])).record == {
        "epochs": EPOCHS
    }


def test_a_file_system_needs_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Lustre, if it is mounted without `flock`."""

    def without(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", without)
    seen: list[int] = []
    ResultStore(tmp_path).make("a-seed0-key", "a", lambda checkpoint: train(checkpoint, seen))
    assert seen == [1, 2, 3, 4, 5]
    assert [path.name for path in tmp_path.iterdir()] == ["a-seed0-key.safetensors"]


def test_a_run_that_slept_while_another_took_over_keeps_what_that_stored(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)

    def slow(checkpoint: Path) -> StageResult:
        checkpoint.write_bytes(b"state")
        other = StageResult({"weight": torch.ones(1)}, {"seconds": 1})
        write_tensors(
            tmp_path / "a-seed0-key.safetensors", other.tensors, {"record": '{"seconds": 1}'}
        )
        return StageResult({"weight": torch.ones(1)}, {"seconds": 100})

    assert store.make("a-seed0-key", "a", slow).record == {"seconds": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a-seed0-key.safetensors"]


@pytest.mark.parametrize("content", [b"", b"junk", b"\x00" * 100])
def test_damaged_results_and_states_are_named(content: bytes, tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    kept, state = (tmp_path / f"thing-seed0-key.{end}" for end in ("safetensors", "resume.pt"))
    for path in (state, kept):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"{path.name}: got a damaged file .*; delete it, and"):
            store.make("thing-seed0-key", "thing", lambda checkpoint: train(checkpoint, []))
        path.unlink()
    assert (
        store.make("thing-seed0-key", "thing", lambda checkpoint: train(checkpoint, [])).record[
            "epochs"
        ]
        == 5
    )


def test_a_training_that_diverges_is_a_sentence_and_keeps_the_last_good_state(
    tmp_path: Path,
) -> None:
    def diverge(checkpoint: Path) -> StageResult:
        model = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters())
        training = ResumableTraining(model, optimizer, checkpoint, 0, torch.device("cpu"))
        for epoch in training.epochs(EPOCHS, "test"):
            nn.init.constant_(model.weight, math.inf if epoch == 3 else 1.0)
            training.history.append(0.0)
        return StageResult({}, {})

    with pytest.raises(
        TrainingError, match=r"thing: epoch 3: got weight that is not finite, .*rate"
    ):
        ResultStore(tmp_path).make("thing-seed0-key", "thing", diverge)
    assert len(torch.load(tmp_path / "thing-seed0-key.resume.pt")["history"]) == 2
