"""Several processes run one command on one work folder: what they make is made once, and is what a
single process makes, also when one of them is killed."""

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from secrets import token_hex
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


@contextmanager
def started(
    folder: Path, *arguments: str, epochs: int = 0
) -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    """Start a process of a run, which kills itself after some epochs; give it with the file of what
    it says."""
    command = [sys.executable, "-m", "tests.merging.run.shared_run", str(folder / "log")]
    command += [str(epochs), *words(folder, *arguments)]
    said = folder / f"said-{token_hex(4)}"
    with said.open("w") as stream:
        process = subprocess.Popen(
            command, text=True, cwd=Path(__file__).parents[3], stdout=stream, stderr=stream
        )
        try:
            yield process, said
        finally:
            process.kill()
            process.wait()


def together(folder: Path, *runs: tuple[str, ...], killed_after: int = 0) -> list[str]:
    """Run commands at one time, the first of which may kill itself after some epochs; return what
    they said."""
    with ExitStack() as stack:
        running = [
            stack.enter_context(started(folder, *run, epochs=0 if index else killed_after))
            for index, run in enumerate(runs)
        ]
        statuses = [process.wait(1200) for process, _ in running]
    texts = [said.read_text() for _, said in running]
    expected = [-signal.SIGKILL if killed_after else 0, *[0] * (len(runs) - 1)]
    assert statuses == expected, "\n".join(texts)
    return texts


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
    """Assert that results are equal, bit for bit, to those of the same name among others."""
    assert one.keys() <= other.keys()
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
    together(shared, *[("train-adapters",)] * 3)
    assert len(made(shared)) == 5
    assert set(made(shared).values()) == {1}
    assert_same(results(shared), results(alone))


def test_what_a_killed_process_began_is_taken_over(alone: Path, shared: Path) -> None:
    """It is killed after two epochs; the other one goes on from there."""
    together(shared, ("train-adapters",), ("train-adapters",), killed_after=2)
    again = {name: count for name, count in made(shared).items() if count > 1}
    assert list(again.values()) == [2]
    assert len(made(shared)) == 5
    assert_same(results(shared), results(alone))


def test_two_parts_divide_a_release_and_the_last_one_writes_it(alone: Path, shared: Path) -> None:
    said = together(shared, ("release", "--part", "0/2"), ("release", "--part", "1/2"))
    assert [text for text in said if "pico 1.2.3: 2 tasks in" in text]
    assert set(made(shared).values()) == {1}
    assert len({line.split()[1] for line in (shared / "log").read_text().splitlines()}) == 2
    assert results(shared).keys() == results(alone).keys()
    assert_same(results(shared), results(alone))
    expected, files = (load_artifact(at / "artifact").manifest.files for at in (alone, shared))
    assert {name for name in expected if files[name] != expected[name]} <= {"README.md"}
    assert not [path for path in shared.iterdir() if path.name.startswith(".")]
