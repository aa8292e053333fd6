"""SLURM: the script of a job array that screens a plan, a part for each task.

A task that fails is not started again by SLURM (only one whose node failed is): the same script is
submitted again, and tasks whose shards are all done end at once. The number of parts is the
plan's: with `--array=2` alone `SLURM_ARRAY_TASK_COUNT` is 1, and a task that relied on it would
take shards of others.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from models.errors import ConfigError
from service.shards.plan import Plan

DEFAULT_MAX_ARRAY_SIZE = 1001
"""SLURM's default of MaxArraySize; the largest index of a task is one less."""


class SlurmError(ConfigError):
    """SLURM refuses a job, or would."""

    code = "slurm"


def script(plan: Plan, path: Path, processes: int, options: Sequence[str]) -> str:
    """Return the script of the array.

    Args:
        plan: the plan.
        path: of the plan's file, which all nodes must see, as they must see inputs and outputs.
        processes: of each task.
        options: further options of sbatch, such as `--time=08:00:00`.
    """
    command = [sys.executable, "-m", "gmerging", "screen", "run", str(path.absolute())]
    lines = [
        "#!/bin/bash",
        "#SBATCH --job-name=gmerging-screen",
        f"#SBATCH --array=0-{plan.parts - 1}",
        f"#SBATCH --cpus-per-task={processes}",
        *(f"#SBATCH {option}" for option in options),
        "",
        "# Compiled kernels are kept on the node: hundreds of tasks that start at once would wait",
        "# for each other on one shared folder.",
        'export NUMBA_CACHE_DIR="${NUMBA_CACHE_DIR:-${TMPDIR:-/tmp}/gmerging-numba-$(id -u)}"',
        "export OMP_NUM_THREADS=1",
        f'exec {shlex.join(command)} --part "$SLURM_ARRAY_TASK_ID/{plan.parts}"'
        f" --processes {processes}",
    ]
    return "\n".join(lines) + "\n"


def check_array_size(plan: Plan) -> None:
    """Raise SlurmError if the plan has more parts than an array may have tasks."""
    most = _max_array_size()
    if plan.parts > most:
        got = f"got a plan of {plan.parts} parts, and MaxArraySize {most}"
        raise SlurmError(f"{got}, expected at most {most} (`screen plan --parts`)")


def _max_array_size() -> int:
    if shutil.which("scontrol") is None:
        return DEFAULT_MAX_ARRAY_SIZE
    shown = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True)
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", shown.stdout, re.MULTILINE)
    return int(found[1]) if found else DEFAULT_MAX_ARRAY_SIZE


def submit(path: Path) -> str | None:
    """Submit a script; return what sbatch says, None if there is no sbatch here.

    Raises:
        SlurmError: sbatch refuses it.
    """
    if shutil.which("sbatch") is None:
        return None
    done = subprocess.run(["sbatch", str(path)], capture_output=True, text=True)
    if done.returncode:
        raise SlurmError(f"sbatch: {done.stderr.strip() or f'status {done.returncode}'}")
    return done.stdout.strip()
