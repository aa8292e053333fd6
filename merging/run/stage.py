"""Stages: computations whose results are stored under a hash of everything they depend on."""

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from merging.config.base import Setting, fingerprint
from merging.run.store import ResultStore, StageResult

_readable: ContextVar[frozenset[str] | None] = ContextVar("readable", default=None)
"""Keys of the results that the running stage may read; None if no stage is running."""


@dataclass(frozen=True, eq=False)
class Stage:
    """A computation that is done once, and its result.

    Attributes:
        name: `<kind>/<task>`, the readable start of the result's file name.
        seed: seed of all random numbers.
        settings: values that the result depends on, besides seed and inputs.
        inputs: stages whose results are read.
        make: computes the result; its argument is a path for resumable state. It must be
            picklable for other processes: a partial of a module's function.
        size: estimate of the work; the largest stages are started first.
    """

    name: str
    seed: int
    settings: tuple[Setting, ...]
    inputs: tuple["Stage", ...]
    make: Callable[[Path], StageResult]
    size: int = 0

    @cached_property
    def key(self) -> str:
        """Hash of everything that the result depends on: 16 hexadecimal digits."""
        inputs = (stage.key for stage in self.inputs)
        return fingerprint(self.name, self.seed, *self.settings, *inputs)

    @property
    def result_name(self) -> str:
        """Name of the result in the store."""
        return f"{self.name}-seed{self.seed}-{self.key}"

    def result(self, store: ResultStore) -> StageResult:
        """Return the result; if it is not stored, make it now, inputs first.

        Raises:
            RuntimeError: a running stage reads this one without naming it among its inputs, so
                that its key would not change with this result.
            DataError, TrainingError: see `ResultStore.make`.
        """
        readable = _readable.get()
        if readable is not None and self.key not in readable:
            raise RuntimeError(f"got {self.name} read by a stage, expected it among its inputs")
        if (found := store.find(self.result_name)) is not None:
            return found
        for stage in self.inputs:
            if not store.has(stage.result_name):
                stage.result(store)
        return store.make(self.result_name, self.name, self._make)

    def _make(self, checkpoint: Path) -> StageResult:
        token = _readable.set(self._below)
        try:
            return self.make(checkpoint)
        finally:
            _readable.reset(token)

    @cached_property
    def _below(self) -> frozenset[str]:
        """Keys of all stages that this one depends on, directly or not."""
        inputs = (stage._below | {stage.key} for stage in self.inputs)
        return frozenset[str]().union(*inputs)


def build(
    targets: Iterable[Stage],
    store: ResultStore,
    processes: int = 1,
    threads: int = 1,
    description: str = "stages",
) -> None:
    """Make the targets and all stages that they depend on, inputs first and large stages early.
    Stored results are kept. The first error is raised.

    Args:
        targets: stages whose results are needed.
        store: store of results.
        processes: number of stages made at a time; 1 makes them in this process.
        threads: torch threads per process.
        description: label of the progress bar.
    """
    missing: dict[str, Stage] = {}
    for stage in sorted(targets, key=lambda stage: -stage.size):
        _collect(stage, store, missing)
    with tqdm(total=len(missing), desc=description, unit="stage") as bar:
        if processes > 1 and len(missing) > 1:
            _in_processes(missing, store, processes, threads, bar)
            return
        for stage in missing.values():
            stage.result(store)
            bar.update()


def _collect(stage: Stage, store: ResultStore, missing: dict[str, Stage]) -> None:
    """Add the stages without a stored result, inputs before the stages that read them."""
    if stage.result_name in missing or store.has(stage.result_name):
        return
    for source in stage.inputs:
        _collect(source, store, missing)
    missing[stage.result_name] = stage


def _in_processes(
    missing: dict[str, Stage], store: ResultStore, processes: int, threads: int, bar: Any
) -> None:
    left, running = dict(missing), dict[Future[None], str]()
    # Fresh processes: a forked one would inherit torch's thread pool in an unknown state.
    context, limit = get_context("spawn"), partial(torch.set_num_threads, threads)
    workers = min(processes, len(missing))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=limit) as pool:
        try:
            while left or running:
                unfinished = {*left, *running.values()}
                ready = [
                    stage
                    for stage in left.values()
                    if not unfinished.intersection(source.result_name for source in stage.inputs)
                ]
                for stage in sorted(ready, key=lambda stage: -stage.size):
                    running[pool.submit(_make_there, stage, store)] = stage.result_name
                    del left[stage.result_name]
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    del running[future]
                    future.result()
                    bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _make_there(stage: Stage, store: ResultStore) -> None:
    """Make a result in another process; it is read from the store, not returned."""
    stage.result(store)
