"""The script of a job array, and its submission."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from service.shards.slurm import SlurmError, check_array_size, script, submit
from tests.service.shards.test_plan import plan_of


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of commands that stand in for SLURM's, the only one on the path with these."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
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
