"""Several processes run one command on one work folder: what they make is made once, and is what a
single process makes, also when one of them is killed."""

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from gmerging.cli.main import main
from models.artifact import load_artifact
from tests.merging.conftest import run_options, write_pico

pytestmark = pytest.mark.slow


def words(folder: Path, *arguments: str) -> list[str]:
    options = ["--config", str(folder / "pico.yaml"), *run_options(folder)]
    if arguments[0] == "release":
        options += ["--output", str(folder / "artifact")]
    return [*arguments, *options]


def start(folder: Path, *arguments: str, epochs: int = 0) -> "subprocess.Popen[str]":
    """Start a process of a run, which kills itself after some epochs."""
    command = [sys.executable, "-m", "tests.merging.run.shared_run", str(folder / "log")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(
        [*command, str(epochs), *words(folder, *arguments)],
        text=True,
        cwd=Path(__file__).parents[3],
        **pipes,  # type: ignore[call-overload]
    )


def finish(process: "subprocess.Popen[str]", status: int = 0) -> str:
    """Wait for a process, and return what it said."""
    said, _ = process.communicate(timeout=300)
    assert process.returncode == status, said
    return str(said)


def made(folder: Path) -> Counter[str]:
    """How often each stage was begun."""
    return Counter(line.split()[0] for line in (folder / "log").read_text().splitlines())


def results(folder: Path) -> dict[str, Any]:
    """Tensors and records of all results by file name, without times and lots of them."""
    found: dict[str, Any] = {}
    for path in sorted((folder / "work/pieces").rglob("*")):
        name = path.relative_to(folder / "work/pieces").as_posix()
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as stream:
                found[name] = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
        elif path.suffix == ".json":
            record = json.loads(path.read_text())
            found[name] = {key: value for key, value in record.items() if "seconds" not in key}
        else:
            assert path.is_dir(), f"{name} was left behind"
    return found


def assert_same(one: Any, other: Any) -> None:
    """Assert that results are equal, bit for bit."""
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert values.keys() == other[name].keys()
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, other[name][key]), f"{name}: {key}"
            else:
                assert value == other[name][key], f"{name}: {key}"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release by a single process."""
    folder = tmp_path_factory.mktemp("alone")
    write_pico(folder)
    assert main(words(folder, "release")) == 0
    return folder


@pytest.fixture
def shared(alone: Path, tmp_path: Path) -> Path:
    """The same data, weights and configuration, with an empty work folder."""
    write_pico(tmp_path)
    text = (alone / "pico.yaml").read_text()
    (tmp_path / "pico.yaml").write_text(text)  # with the same path of the weights
    return tmp_path


def test_three_processes_make_each_stage_once_and_the_same(alone: Path, shared: Path) -> None:
    for process in [start(shared, "release") for _ in range(3)]:
        finish(process)
    assert set(made(shared).values()) == {1}
    assert_same(results(alone), results(shared))
    expected, files = (load_artifact(at / "artifact").manifest.files for at in (alone, shared))
    assert {name for name in expected if files[name] != expected[name]} <= {"README.md"}
    assert not [path for path in shared.iterdir() if path.name.startswith(".")]


def test_what_a_killed_process_began_is_taken_over(alone: Path, shared: Path) -> None:
    """It is killed after two epochs; the other one goes on from there."""
    killed, other = start(shared, "release", epochs=2), start(shared, "release")
    finish(killed, -signal.SIGKILL)
    finish(other)
    again = {name: count for name, count in made(shared).items() if count > 1}
    assert list(again.values()) == [2]
    assert_same(results(alone), results(shared))
    assert load_artifact(shared / "artifact").manifest.name == "pico"


def test_parts_divide_the_stages_and_the_last_one_writes_the_output(
    alone: Path, shared: Path
) -> None:
    parts = [start(shared, "release", "--part", f"{index}/2") for index in range(2)]
    said = [finish(process) for process in parts]
    assert [text for text in said if "pico 1.2.3: 2 tasks in" in text]
    assert set(made(shared).values()) == {1}
    assert len({line.split()[1] for line in (shared / "log").read_text().splitlines()}) == 2
    assert_same(results(alone), results(shared))
