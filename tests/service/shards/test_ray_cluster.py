"""Shards on a real Ray: one that is started, nodes that are lost, a link that is cut.

`GMERGING_RAY_PYTHON` names a Python with the extra `ray`, if this one is none.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from service.shards.made import Shard
from service.shards.note import Note, note_of
from service.shards.plan import read_plan
from tests.service.shards import ray_nodes
from tests.service.shards.libraries import (
    check_answers,
    check_library,
    outputs,
    plan_library,
    write_library,
)

VARIABLE = "GMERGING_RAY_PYTHON"
PYTHON = os.environ.get(VARIABLE) or (sys.executable if find_spec("ray") else None)
ROOT = Path(__file__).parents[3]
ROWS = 3000
pytestmark = pytest.mark.slow


@dataclass
class Desk:
    """A folder with a library and its plan, and the environment of commands."""

    folder: Path
    environment: dict[str, str]

    def ran(self, *words: str) -> "subprocess.Popen[str]":
        """Start the screening."""
        return self.started("-m", "gmerging", "screen", "run", "screen.json", *words)

    def started(
        self, *words: str, before: tuple[str, ...] = (), stdin: int | None = None
    ) -> "subprocess.Popen[str]":
        """Start the Python that has Ray."""
        assert PYTHON is not None
        with (self.folder / "log").open("a") as log:
            return subprocess.Popen(
                [*before, PYTHON, *words],
                cwd=self.folder,
                env=self.environment,
                text=True,
                stdin=stdin,
                stdout=log if stdin is None else subprocess.PIPE,
                stderr=log,
            )

    @property
    def log(self) -> str:
        """What all commands have said."""
        return (self.folder / "log").read_text()

    @property
    def shards(self) -> list[Shard]:
        """All shards of the plan."""
        return read_plan(self.folder / "screen.json").part(None)

    def under_way(self) -> list[Note]:
        """The notes of shards of which some rows are answered."""
        notes = [note_of(shard.output) for shard in self.shards]
        return [note for note in notes if note is not None and 0 < note.rows < 0.8 * ROWS]

    def done(self) -> dict[Path, int]:
        """The inodes of outputs; each of them is whole."""
        return outputs(self.folder / "out", ROWS)

    def check(self, artifact: Path) -> None:
        """All rows are there once, in order, with the engine's numbers, and nothing else is."""
        check_library(self.folder / "library", self.folder / "out")
        check_answers(artifact, self.folder / "library", self.folder / "out", "b/part-1.parquet")


@pytest.fixture
def desk(pico_artifact: Path, tmp_path: Path) -> Iterator[Desk]:
    if PYTHON is None:
        pytest.skip(f"there is no Ray here, and {VARIABLE} does not name a Python with it")
    write_library(tmp_path / "library", 6, ROWS)
    plan_library(tmp_path, pico_artifact)
    # Ray's sockets are in there: a path of theirs has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="gm", dir="/tmp", ignore_cleanup_errors=True) as short:
        environment = {
            **{name: text for name, text in os.environ.items() if not name.startswith("RAY_")},
            "HOME": str(tmp_path),
            "PYTHONPATH": str(ROOT),
            "RAY_TMPDIR": short,
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # 15 is for ever where other processes compute
            "GMERGING_DEVICE": "cpu",
        }
        yield Desk(tmp_path, environment)


def until(seconds: float, step: float = 0.05) -> Iterator[None]:
    """Come round again and again, for so long at most."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(step)
    raise AssertionError(f"nothing came in {seconds:.0f} seconds")


@contextmanager
def node(desk: Desk, *words: str, before: tuple[str, ...] = ()) -> Iterator[None]:
    """Start a node of Ray, and wait until it is there; end it."""
    start = ["-m", "ray.scripts.scripts", "start", "--block", "--object-store-memory=80000000"]
    names = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port")
    names += ("runtime-env-agent-port",)
    start += [f"--{name}={port}" for name, port in zip(names, ray_nodes.ports(4), strict=True)]
    seen = desk.log.count("Ray runtime started") if (desk.folder / "log").exists() else 0
    run = desk.started(*start, *words, before=before)
    try:
        for _ in until(300):
            assert run.poll() is None, desk.log[-3000:]
            if desk.log.count("Ray runtime started") > seen:
                break
        yield
    finally:
        family = [run, *psutil.Process(run.pid).children(recursive=True)] if not run.poll() else []
        for process in family:
            process.kill()
        run.wait()


@pytest.fixture
def head(desk: Desk) -> Iterator[None]:
    """A cluster of this machine alone, with two CPUs."""
    (port,) = ray_nodes.ports(1)
    address = "127.0.0.1"
    words = [f"--port={port}", f"--node-ip-address={address}", "--include-dashboard=false"]
    with node(desk, "--head", "--num-cpus=2", *words):
        desk.environment["RAY_ADDRESS"] = f"{address}:{port}"
        yield


def test_a_ray_that_is_started_has_the_rows_of_the_local_engine(
    desk: Desk, pico_artifact: Path
) -> None:
    assert desk.ran("--engine", "ray").wait() == 0, desk.log
    assert "6 of 6 shards done, 0 missing; 18000 rows, 360 with an error" in desk.log
    desk.check(pico_artifact)
    plan_library(desk.folder, pico_artifact, output="local")
    assert desk.ran().wait() == 0
    for path in desk.done():
        local = desk.folder / "local" / path.relative_to(desk.folder / "out")
        assert pq.read_table(path).equals(pq.read_table(local))


def test_kills_of_processes_and_of_the_driver_lose_nothing(
    desk: Desk, head: None, pico_artifact: Path
) -> None:
    run = desk.ran("--engine", "ray")
    killed: set[int] = set()
    for _ in until(900):
        found = [note.pid for note in desk.under_way() if note.pid not in killed]
        if found and len(killed) < 3:
            assert psutil.Process(found[0]).cmdline()[0].startswith("ray::screen")
            os.kill(found[0], signal.SIGKILL)
            killed.add(found[0])
        if len(killed) == 3 and desk.done():
            break
    for _ in until(900):
        if alive := desk.under_way():
            break
    run.kill()
    run.wait()
    before = desk.done()
    psutil.wait_procs([psutil.Process(note.pid) for note in alive if psutil.pid_exists(note.pid)])
    assert desk.ran("--engine", "ray").wait() == 0, desk.log
    desk.check(pico_artifact)
    after = desk.done()
    assert {path: after[path] for path in before} == before  # not done again


def test_a_lost_node_loses_nothing(desk: Desk, pico_artifact: Path) -> None:
    words = ["-m", "tests.service.shards.ray_nodes"]
    cluster = desk.started(*words, stdin=subprocess.PIPE)
    assert cluster.stdin is not None
    assert cluster.stdout is not None
    try:
        line = cluster.stdout.readline()
        assert line, desk.log[-3000:]
        desk.environment["RAY_ADDRESS"] = json.loads(line)
        run = desk.ran("--engine", "ray")
        for _ in until(900):
            if len(desk.under_way()) == 2:  # one on each node
                break
        before = desk.done()
        cluster.stdin.write("\n")
        cluster.stdin.flush()
        assert run.wait(900) == 0, desk.log
    finally:
        cluster.stdin.close()
        cluster.stdout.close()
        cluster.wait()
    desk.check(pico_artifact)
    after = desk.done()
    assert {path: after[path] for path in before} == before


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def link() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a link between them, 10.99.7.1 and 10.99.7.2: their names."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root, and the command ip")
    names = (f"gm{os.getpid()}a", f"gm{os.getpid()}b")
    with ExitStack() as stack:
        for name in names:
            try:
                ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no network namespaces: {error.stderr.decode().strip()}")
            stack.callback(ip, "netns", "del", name)
            stack.callback(end_all_in, name)
            ip("-n", name, "link", "set", "lo", "up")
        a, b = names
        ip("link", "add", "veth0", "netns", a, "type", "veth", "peer", "name", "veth0", "netns", b)
        for k, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.99.7.{k}/24", "dev", "veth0")
            ip("-n", name, "link", "set", "veth0", "up")
        yield a, b


def processes_in(name: str) -> list[int]:
    shown = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
    return [int(word) for word in shown.stdout.split()]


def end_all_in(name: str) -> None:
    for pid in processes_in(name):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("frozen", [False, True], ids=["goes on", "frozen"])
def test_a_node_whose_link_is_cut_loses_nothing(
    frozen: bool, link: tuple[str, str], desk: Desk, pico_artifact: Path
) -> None:
    """The node goes on, so that outputs appear of which nobody is told; or it is frozen too, so
    that none appears, and nobody is told that it is dead."""
    here, there = [("ip", "netns", "exec", name) for name in link]
    address = "10.99.7.1:6399"
    words = ("--head", "--port=6399", "--include-dashboard=false", "--num-cpus=1")
    with (
        node(desk, *words, "--node-ip-address=10.99.7.1", before=here),
        node(
            desk,
            *(f"--address={address}", "--num-cpus=1", "--node-ip-address=10.99.7.2"),
            before=there,
        ),
    ):
        desk.environment["RAY_ADDRESS"] = address
        run = desk.started(
            *("-m", "gmerging", "screen", "run", "screen.json", "--engine", "ray"), before=here
        )
        for _ in until(900):
            theirs = [n for n in desk.under_way() if n.pid in processes_in(link[1])]
            if theirs:
                break
        ip("-n", link[1], "link", "set", "veth0", "down")
        if frozen:
            for pid in processes_in(link[1]):
                os.kill(pid, signal.SIGSTOP)
        before = desk.done()
        for _ in until(900, 0.5):
            if len(desk.done()) == len(desk.shards):
                break
        assert run.wait(120) == 0, desk.log
    desk.check(pico_artifact)
    after = desk.done()
    assert {path: after[path] for path in before} == before
