"""Stages of a run: named work whose result is kept under a key of everything it depends on."""

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
"""Keys of the results that the stage which is being made may read; None: none is being made."""


@dataclass(frozen=True, eq=False)
class Stage:
    """Work that is done once, and its result.

    Attributes:
        name: `kind/task`, as the result is found by people.
        seed: of everything that is drawn.
        settings: what the result depends on besides seed and inputs.
        inputs: the stages whose results are read.
        make: does the work; gets a path for a state that survives a stop. Picklable, for other
            processes: a partial of a module's function.
        size: what takes longest has the greatest, and is started first.
    """

    name: str
    seed: int
    settings: tuple[Setting, ...]
    inputs: tuple["Stage", ...]
    make: Callable[[Path], StageResult]
    size: int = 0

    @cached_property
    def key(self) -> str:
        """A short hash of everything that the result depends on."""
        inputs = (stage.key for stage in self.inputs)
        return fingerprint(self.name, self.seed, *self.settings, *inputs)

    @property
    def result_name(self) -> str:
        """Where the result is, in the store."""
        return f"{self.name}-seed{self.seed}-{self.key}"

    def result(self, store: ResultStore) -> StageResult:
        """The result; made now, inputs first, if it is not there.

        Raises:
            RuntimeError: a stage that is being made reads this one, and does not name it among its
                inputs: its key would not tell their results apart.
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
        before = _readable.set(self._below)
        try:
            return self.make(checkpoint)
        finally:
            _readable.reset(before)

    @cached_property
    def _below(self) -> frozenset[str]:
        """Keys of the inputs, and of theirs."""
        inputs = (stage._below | {stage.key} for stage in self.inputs)
        return frozenset[str]().union(*inputs)


def build(
    targets: Iterable[Stage],
    store: ResultStore,
    processes: int = 1,
    threads: int = 1,
    description: str = "stages",
) -> None:
    """Make the targets and what they need, each once: inputs first, of those that can be made the
    largest first. What is finished already is left as it is. The first error is raised here.

    Args:
        targets: the stages whose results are wanted.
        store: where results are.
        processes: how many at a time; 1 makes them in this process.
        threads: torch threads of each.
        description: for the progress bar.
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
    """Add what is not there, inputs before what reads them."""
    if stage.result_name in missing or store.has(stage.result_name):
        return
    for needed in stage.inputs:
        _collect(needed, store, missing)
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
                    if not unfinished.intersection(needed.result_name for needed in stage.inputs)
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
    """In another process; what was made stays in the store."""
    stage.result(store)
