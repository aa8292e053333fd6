"""The script of a job array, and its submission, to a real SLURM too."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from service.shards.note import note_of
from service.shards.plan import read_plan
from service.shards.slurm import SlurmError, check_array_size, script, submit
from tests.service.shards import slurm_cluster
from tests.service.shards.libraries import (
    check_answers,
    check_library,
    outputs,
    plan_library,
    write_library,
)
from tests.service.shards.test_plan import plan_of


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of commands that stand in for SLURM's, the only one on the path with these."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))  # there may be a real SLURM on this machine
    return folder


def stand_in(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_the_array_has_a_task_for_every_part_of_the_plan(tmp_path: Path) -> None:
    text = script(plan_of(7, 3), tmp_path / "my plan.json", 4, ["--time=01:00:00"])
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    assert [line for line in lines if line.startswith("#SBATCH")] == [
        "#SBATCH --job-name=gmerging-screen",
        "#SBATCH --array=0-2",
        "#SBATCH --cpus-per-task=4",
        "#SBATCH --time=01:00:00",
    ]
    assert "SLURM_ARRAY_TASK_COUNT" not in text
    # What a task runs, as the shell reads it.
    shown = text.replace(f"exec {shlex.quote(sys.executable)}", "printf '%s\\n'")
    done = subprocess.run(
        ["bash", "-c", shown],
        env={**os.environ, "SLURM_ARRAY_TASK_ID": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        *("-m", "gmerging", "screen", "run", str(tmp_path / "my plan.json")),
        *("--part", "2/3", "--processes", "4"),
    ]


def test_more_parts_than_an_array_may_have_are_refused(commands: Path) -> None:
    check_array_size(plan_of(1, 1001))
    with pytest.raises(SlurmError, match="got a plan of 1002 parts, and MaxArraySize 1001"):
        check_array_size(plan_of(1, 1002))
    stand_in(commands / "scontrol", "echo 'MaxArraySize            = 4001'")
    check_array_size(plan_of(1, 4001))
    with pytest.raises(SlurmError, match="MaxArraySize 4001"):
        check_array_size(plan_of(1, 4002))


def test_a_script_is_submitted_where_there_is_sbatch(commands: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.sbatch"
    assert submit(path) is None
    stand_in(commands / "sbatch", 'echo "Submitted batch job 7: $1"')
    assert submit(path) == f"Submitted batch job 7: {path}"
    stand_in(commands / "sbatch", "echo 'no such partition' >&2; exit 1")
    with pytest.raises(SlurmError, match="sbatch: no such partition"):
        submit(path)


# --- a real cluster of two nodes ---

ROWS = 5000
ENDED = {"COMPLETED", "FAILED"}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    with slurm_cluster.running(tmp_path / "slurm") as environment:
        yield {
            **environment,
            "PYTHONPATH": str(Path(__file__).parents[3]),
            "GMERGING_DEVICE": "cpu",
        }


def submitted(cluster: dict[str, str], folder: Path) -> str:
    """Submit the plan; return the number of the job."""
    words = ["-m", "gmerging", "screen", "run", "screen.json", "--engine", "slurm"]
    done = subprocess.run(
        [sys.executable, *words], env=cluster, cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "screen.sbatch: Submitted batch job" in done.stdout
    return done.stdout.split()[-1]


def ended(cluster: dict[str, str], job: str) -> list[dict[str, str]]:
    """Wait for the end of all tasks of an array."""
    while True:
        found = slurm_cluster.tasks(cluster, job)
        if found and all(task["JobState"] in ENDED for task in found):
            return found
        time.sleep(1)


def task_in_a_shard(folder: Path) -> psutil.Process:
    """Wait until a shard of the array's first task is half done; return the task's process."""
    plan = read_plan(folder / "screen.json")
    first = [shard.output for shard in plan.part(0)]
    while True:
        time.sleep(0.05)
        notes = [note for output in first if (note := note_of(output)) is not None]
        if notes and 0 < notes[0].rows < ROWS / 2:
            task = psutil.Process(notes[0].pid).parent()
            assert task is not None
            assert task.environ()["SLURM_ARRAY_TASK_ID"] == "0"
            return task


@pytest.mark.slow
def test_an_array_on_two_nodes_of_which_a_task_is_killed_and_submitted_again(
    cluster: dict[str, str], pico_artifact: Path, tmp_path: Path
) -> None:
    write_library(tmp_path / "library", 6, ROWS)
    plan_library(tmp_path, pico_artifact, "--parts", "3")
    job = submitted(cluster, tmp_path)
    task_in_a_shard(tmp_path).kill()
    found = ended(cluster, job)
    assert {task["NodeList"] for task in found} == set(slurm_cluster.NODES)
    assert [task["ArrayTaskId"] for task in found if task["JobState"] == "FAILED"] == ["0"]
    assert {task["ExitCode"] for task in found} == {"0:0", "0:9"}
    before = outputs(tmp_path / "out", ROWS)
    assert 4 <= len(before) < 6
    again = ended(cluster, submitted(cluster, tmp_path))
    assert {task["JobState"] for task in again} == {"COMPLETED"}
    check_library(tmp_path / "library", tmp_path / "out")
    check_answers(pico_artifact, tmp_path / "library", tmp_path / "out", "b/part-2.parquet")
    after = outputs(tmp_path / "out", ROWS)
    assert {path: after[path] for path in before} == before  # not done again
