"""Shards dealt out to processes: what dies comes back, three times at most."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from models.errors import GMergingError
from service.shards.made import Shard
from service.shards.note import Note, note_of, write_note
from service.shards.runner import Progress, Run, WorkersLostError

READY: dict[str, Any] = {"ready": True}
DONE = {"done": 5, "kept": 4, "errors": {"chemistry": 1}}


class Scripted:
    """A process that answers by a script: lists of reports by shard, taken one list an attempt; a
    list without a last report ends it."""

    scripts: dict[str, list[list[dict[str, Any]]]] = {}
    starts: list[dict[str, Any] | None] = []
    log: list[str] = []
    lock = threading.Lock()

    def __init__(self) -> None:
        self.replies: list[dict[str, Any]] = []
        self.dead = False
        with self.lock:
            first = self.starts.pop(0) if self.starts else READY
        if first is None:
            self.dead = True
        else:
            self.replies.append(first)

    def send(self, shard: Shard) -> None:
        with self.lock:
            self.log.append(shard.name)
            self.replies = list(self.scripts[shard.name].pop(0))

    def read(self) -> dict[str, Any] | None:
        return self.replies.pop(0) if self.replies and not self.dead else None

    def ended(self) -> str:
        return "signal 9"

    def kill(self) -> None:
        self.dead = True

    def close(self) -> None:
        self.dead = True


@pytest.fixture
def scripted() -> type[Scripted]:
    Scripted.scripts, Scripted.starts, Scripted.log = {}, [], []
    return Scripted


def run(
    names: str, folder: Path, processes: int = 1, skipped: int = 0
) -> tuple[Progress, list[int]]:
    shards = [Shard(name, f"/in/{name}", str(folder / name)) for name in names.split()]
    told: list[int] = []
    start = Run(shards, shards[skipped:], Scripted, lambda seen: told.append(seen.rows))
    progress = start(processes)
    return progress, told


@pytest.mark.parametrize("processes", [1, 2, 8])
def test_every_shard_is_done_once(processes: int, scripted: type[Scripted], tmp_path: Path) -> None:
    scripted.scripts = {name: [[{"rows": 0}, {"rows": 5}, DONE]] for name in "bcde"}
    progress, told = run("a b c d e", tmp_path, processes, skipped=1)
    assert sorted(scripted.log) == ["b", "c", "d", "e"]
    assert (progress.shards, progress.done, progress.skipped) == (5, 5, 1)
    assert (progress.rows, progress.kept, progress.attempts) == (20, 16, 4)
    assert progress.errors == {"chemistry": 4}
    assert progress.failed == {}
    assert told[-1] == 20
    assert progress.rate > 0


def test_a_shard_whose_process_died_is_tried_again_behind_the_others(
    scripted: type[Scripted], tmp_path: Path
) -> None:
    scripted.scripts = {"a": [[{"rows": 3}], [{"rows": 5}, DONE]], "b": [[{"rows": 5}, DONE]]}
    progress, told = run("a b", tmp_path)
    assert scripted.log == ["a", "b", "a"]
    assert (progress.done, progress.rows, progress.failed) == (2, 10, {})
    assert told[:2] == [3, 0]  # rows of an attempt that died do not count


def test_a_shard_is_given_up_after_three_attempts_and_its_note_says_why(
    scripted: type[Scripted], tmp_path: Path
) -> None:
    write_note(str(tmp_path / "a"), Note.new("", ()))
    again = {"failed": "no network", "final": False}
    scripted.scripts = {
        "a": [[{"rows": 3}]] * 3,
        "b": [[again]] * 3,
        "c": [[{"failed": "no Parquet file", "final": True}]],
        "d": [[again], [again], [DONE]],
    }
    progress, _ = run("a b c d", tmp_path, 2)
    assert progress.failed == {
        "a": "its process ended (signal 9)",
        "b": "no network",
        "c": "no Parquet file",
    }
    assert (progress.done, progress.shards) == (1, 4)
    assert sorted(scripted.log) == [*"aaabbbcddd"]
    note = note_of(str(tmp_path / "a"))
    assert note is not None
    assert note.error == "its process ended (signal 9)"
    assert json.loads(note.model_dump_json())["error"] == note.error


def test_processes_that_do_not_start_end_the_run(scripted: type[Scripted], tmp_path: Path) -> None:
    scripted.scripts = {name: [[DONE]] for name in "ab"}
    scripted.starts = [None, None]
    assert run("a b", tmp_path)[0].done == 2
    scripted.starts = [None] * 3
    with pytest.raises(WorkersLostError, match="three times"):
        run("a b", tmp_path)


def test_a_refused_model_ends_the_run_with_its_code(
    scripted: type[Scripted], tmp_path: Path
) -> None:
    scripted.starts = [{"refused": "got unknown task", "code": "unknown_task"}] * 2
    with pytest.raises(GMergingError, match="got unknown task") as refused:
        run("a b", tmp_path, 2)
    assert refused.value.code == "unknown_task"


def test_a_model_that_is_refused_with_the_first_shard_ends_the_run(
    scripted: type[Scripted], tmp_path: Path
) -> None:
    refused = {"refused": "got no folder", "code": "artifact"}
    scripted.scripts = {name: [[refused]] for name in "ab"}
    with pytest.raises(GMergingError, match="got no folder") as raised:
        run("a b", tmp_path, 2)
    assert raised.value.code == "artifact"


def test_what_fails_here_ends_the_run(
    scripted: type[Scripted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(scripted, "send", fail)
    with pytest.raises(OSError, match="no route"):
        run("a b", tmp_path, 2)


def test_nothing_left_starts_nothing(scripted: type[Scripted], tmp_path: Path) -> None:
    progress, _ = run("a b", tmp_path, 2, skipped=2)
    assert (progress.done, progress.skipped, scripted.log) == (2, 2, [])
