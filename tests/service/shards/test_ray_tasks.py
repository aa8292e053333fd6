"""Shards as tasks of Ray: what the driver makes of what it hears and sees, without Ray."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from models.artifact import read_manifest
from models.extras import MissingPackageError
from service.shards import ray_tasks
from service.shards.made import Shard
from service.shards.note import Note, note_of, write_note
from service.shards.ray_tasks import RayCluster, RayClusterError, RayWorker, screen
from service.shards.request import ScreenModel
from tests.service.shards.test_shard import request, shard_of, write_table


class RayError(Exception):
    """Stands for `ray.exceptions.RayError`."""


@dataclass
class Ray:
    """Stands for the package: tasks are numbers, and end with a result when a test says so."""

    results: dict[int, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    handed: list[tuple[Any, ...]] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    all_nodes: list[dict[str, Any]] = field(default_factory=list)
    between: Callable[[], None] = lambda: None
    problem: Exception | None = None
    exceptions = SimpleNamespace(RayError=RayError)

    def init(self, **_: object) -> None:
        if self.problem is not None:
            raise self.problem

    def remote(self, **options: Any) -> Callable[[object], Any]:
        self.options = options
        return lambda function: SimpleNamespace(remote=self.hand_out)

    def hand_out(self, *arguments: Any) -> int:
        self.handed.append(arguments)
        return len(self.handed) - 1

    def wait(self, tasks: list[int], timeout: float) -> tuple[list[int], list[int]]:
        self.between()
        return [task for task in tasks if task in self.results], []

    def get(self, task: int) -> Any:
        if isinstance(self.results[task], Exception):
            raise self.results[task]
        return self.results[task]

    def cancel(self, task: int, force: bool) -> None:
        self.cancelled.append(task)

    def nodes(self) -> list[dict[str, Any]]:
        return self.all_nodes

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 6.0}

    def shutdown(self) -> None:
        self.handed.clear()


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    stand_in = Ray()
    monkeypatch.setitem(sys.modules, "ray", stand_in)
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    return stand_in


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    return shard_of(write_table(tmp_path / "m.csv", [["smiles"], ["CCO"], ["C1"]]))


@pytest.fixture
def order(pico_artifact: Path) -> ScreenModel:
    return ScreenModel(pico_artifact, read_manifest(pico_artifact)[1], request(), "cpu")


@pytest.fixture
def worker(ray: Ray, order: ScreenModel, shard: Shard) -> RayWorker:
    """One that is there, and has been sent the shard."""
    with RayCluster((order, False)) as cluster:
        made = cluster.worker()
    assert made.read() == {"ready": True}
    made.send(shard)
    return made


def note(**changes: Any) -> Note:
    return Note.new("", ()).model_copy(update={"host": "other", **changes})


# --- the cluster ---


def test_a_task_has_its_threads_and_is_tried_once_by_ray(ray: Ray, order: ScreenModel) -> None:
    with RayCluster((order, True)) as cluster:
        assert cluster.processes == 6
        assert ray.options == {"num_cpus": 1, "num_gpus": 0, "max_retries": 0}
        cluster.worker().send(Shard("m", "/in/m.csv", "/out/m.csv.parquet"))
        ((model, replaces, sent),) = ray.handed
        assert (model, replaces, sent.name) == (order, True, "m")
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    RayCluster((ScreenModel(Path("admet"), "0", request(), "cuda", 4), False))
    assert ray.options == {"num_cpus": 4, "num_gpus": 1, "max_retries": 0}


def test_no_ray_and_no_cluster_are_said(
    ray: Ray, order: ScreenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.problem = ConnectionError("no head at 10.0.0.1:6379\nTraceback")
    with pytest.raises(RayClusterError, match=r"got ConnectionError: no head at \S+, expected a"):
        RayCluster((order, False))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r"expected the extra `ray`: .*g-merging\[ray\]"):
        RayCluster((order, False))


# --- what is heard ---


def test_the_reports_of_a_task_are_its_workers(ray: Ray, worker: RayWorker) -> None:
    last = {"done": 2, "kept": 2, "errors": {}}
    ray.results[0] = [{"rows": 2}, last]
    assert [worker.read(), worker.read()] == [{"rows": 2}, last]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (RayError("The worker died\nsee logs"), "RayError: The worker died"),
        (RayError(), "RayError"),
    ],
    ids=["said", "silent"],
)
def test_a_task_that_dies_leaves_a_note_that_says_so(
    error: RayError, why: str, ray: Ray, worker: RayWorker, shard: Shard
) -> None:
    write_note(shard.output, note(chunk=3))
    ray.results[0] = error
    assert worker.read() is None
    assert worker.ended() == why
    left = note_of(shard.output)
    assert left is not None
    assert (left.is_alive, left.error) == (False, f"its process ended ({why})")
    assert left.all_suspects == (3,)  # so that the next attempt knows where


def test_the_cause_of_what_a_task_raises_is_said(ray: Ray, worker: RayWorker) -> None:
    error = RayError("Traceback of the other machine")
    error.cause = ModuleNotFoundError("No module named 'rdkit'")  # type: ignore[attr-defined]
    ray.results[0] = error
    assert worker.read() is None
    assert worker.ended() == "ModuleNotFoundError: No module named 'rdkit'"


# --- what is seen ---


def test_an_output_that_is_there_is_taken_though_its_task_says_nothing(
    ray: Ray, worker: RayWorker, order: ScreenModel, shard: Shard
) -> None:
    (last,) = (report for report in screen(order, False, shard) if "done" in report)
    assert [worker.read(), worker.read()] == [{"rows": 2}, last]
    assert last == {"done": 2, "kept": 2, "errors": {"smiles_syntax": 1}}
    assert ray.cancelled == [0]


def test_rows_are_reported_as_its_note_has_them(ray: Ray, worker: RayWorker, shard: Shard) -> None:
    write_note(shard.output, note(rows=7))
    assert worker.read() == {"rows": 7}
    assert ray.cancelled == []


def test_a_shard_of_which_nothing_is_heard_for_long_is_lost(
    ray: Ray, worker: RayWorker, shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_note(shard.output, note(rows=7))
    assert worker.read() == {"rows": 7}
    monkeypatch.setattr(ray_tasks, "SILENT_SECONDS", 0.0)
    assert worker.read() is None
    assert worker.ended() == "no word for 0 seconds"
    assert ray.cancelled == [0]


def test_a_shard_on_a_node_that_died_is_lost_unless_it_is_heard_of(
    ray: Ray, worker: RayWorker, shard: Shard
) -> None:
    ray.all_nodes = [
        {"NodeID": "1", "NodeManagerHostname": "this", "Alive": True},
        {"NodeID": "2", "NodeManagerHostname": "other", "Alive": False},
    ]
    for rows in (7, 9):  # a node that the others do not see may still write
        write_note(shard.output, note(rows=rows))
        assert worker.read() == {"rows": rows}
    assert worker.read() is None
    assert worker.ended() == "its node is dead"


def test_a_shard_that_nobody_has_begun_is_handed_out_again(ray: Ray, worker: RayWorker) -> None:
    dead = {"NodeID": "2", "NodeManagerHostname": "other", "Alive": False}
    looks = iter([[], [dead], [dead], [dead]])

    def look() -> None:
        ray.all_nodes = next(looks, [dead])
        if len(ray.handed) == 2:
            ray.results[1] = [{"failed": "no disk", "final": False}]

    ray.handed[:] = [()]
    ray.between = look
    assert worker.read() == {"failed": "no disk", "final": False}
    assert (len(ray.handed), ray.cancelled) == (2, [0])  # once for a node that died


def test_files_that_cannot_be_looked_at_are_looked_at_again(
    ray: Ray, worker: RayWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([OSError("no route"), OSError("no route")])

    def fail(*_: object) -> None:
        error = next(looks, None)
        if error is None:
            ray.results[0] = [{"failed": "no disk", "final": False}]
            return
        raise error

    monkeypatch.setattr(ray_tasks, "finished", fail)
    monkeypatch.setattr(ray_tasks, "note_of", lambda output: (_ for _ in ()).throw(OSError()))
    assert worker.read() == {"failed": "no disk", "final": False}


# --- in a process of Ray ---


def test_a_model_that_cannot_be_used_is_refused(tmp_path: Path, shard: Shard) -> None:
    nowhere = ScreenModel(tmp_path / "nowhere", "0", request(), "cpu")
    (said,) = screen(nowhere, False, shard)
    assert "expected a folder" in said["refused"]
    assert said["code"]
