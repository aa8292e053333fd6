"""A process of a test that runs `gmerging` on a work folder which others share: it logs the stages
that it makes, and may kill itself after some epochs.

    python -m tests.merging.run.shared_run LOG EPOCHS ARGUMENT ...
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gmerging.cli.main import main
from merging.run.store import ResultStore, StageResult
from merging.training.loop import ResumableTraining


def run(log: Path, epochs: int, arguments: list[str]) -> int:
    """Run a command.

    Args:
        log: gets a line `<result> <process>` for every stage that this process begins.
        epochs: number of epochs of trainings after which it kills itself; 0 for never.
        arguments: of `gmerging`.

    Returns:
        The exit status.
    """
    make, save, left = ResultStore._made, ResultStore.find, [epochs]

    def logged(
        store: ResultStore, name: str, stage: str, function: Callable[[Path], StageResult]
    ) -> StageResult:
        if save(store, name) is None:
            with log.open("a") as stream:
                stream.write(f"{name} {os.getpid()}\n")
        return make(store, name, stage, function)

    written = ResumableTraining._save

    def counted(training: Any) -> None:
        written(training)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    ResultStore._made, ResumableTraining._save = logged, counted  # type: ignore[method-assign]
    return main(arguments)


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
