"""Processes of Python that import the packages of this one, and how they end."""

import os
import signal
from pathlib import Path


def environment() -> dict[str, str]:
    """Return the environment of a Python process that imports the packages of this one, and not
    what is in its current folder. Each computes with one thread, unless the user says otherwise."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def how_it_ended(code: int) -> str:
    """Return in words how a process ended.

    Args:
        code: its return code, as `subprocess` has it.
    """
    if code == -signal.SIGXCPU:
        return "its CPU time was used up"
    return f"signal {-code}" if code < 0 else f"status {code}"
