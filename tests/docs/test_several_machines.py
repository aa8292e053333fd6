"""The page on several machines: its array script and its example are run as they stand there."""

import shlex
from pathlib import Path

import pytest

from gmerging.cli.main import make_parser
from merging.run.build import Share
from models.artifact import load_artifact
from tests.merging.conftest import write_pico
from tests.pages import block, page

PAGE = page("several-machines.md")


def test_the_array_script_starts_a_part_of_the_release() -> None:
    script = block(PAGE, "sh", "#SBATCH --array=0-7").replace("\\\n", " ")
    line = next(line for line in script.splitlines() if line.startswith("srun "))
    for name, value in (("$SLURM_CPUS_PER_TASK", "4"), ("$SLURM_ARRAY_TASK_ID", "5")):
        line = line.replace(name, value)
    words = shlex.split(line)
    assert words[:4] == ["srun", "python", "-m", "gmerging"]
    arguments = make_parser().parse_args(words[4:])
    assert arguments.part == Share(5, 8)  # of as many as the array has
    assert (arguments.threads, arguments.output) == (4, Path("/shared/mine"))


@pytest.mark.slow
def test_the_example_with_an_executor_writes_an_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (write_pico(tmp_path)).rename(tmp_path / "mine.yaml")
    monkeypatch.chdir(tmp_path)
    example = block(PAGE, "python", "get_reusable_executor")
    exec(compile(example.replace("executor(4)", "executor(1)"), str(PAGE), "exec"), {})
    assert load_artifact(tmp_path / "artifact").manifest.name == "pico"
