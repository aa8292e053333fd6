"""Processes of Python, and how they end."""

import os
import signal
import subprocess
import sys

import pytest

from service.shards.processes import environment, how_it_ended


def test_a_process_imports_the_packages_of_this_one(tmp_path: os.PathLike[str]) -> None:
    code = "import os, service; print(service.__file__, os.environ['OMP_NUM_THREADS'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    import service

    assert done.stdout.split()[0] == service.__file__


@pytest.mark.parametrize(
    ("code", "said"),
    [(3, "status 3"), (-signal.SIGKILL, "signal 9"), (-signal.SIGXCPU, "its CPU time was used up")],
)
def test_ends_in_words(code: int, said: str) -> None:
    assert how_it_ended(code) == said
