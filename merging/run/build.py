"""Builds: the stages that are needed are made once, by any number of processes that share the work
folder, on one machine or on several.

Processes need not know of each other: a stage is made by whoever gets its lease
(`merging.data.lease`), and the others go on with the next one that is ready.
"""

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch
from tqdm import tqdm

from merging.data.lease import SPOKEN_PAUSE, Claim, Watch, pauses_of_waiting
from merging.run.stage import Stage
from merging.run.store import ResultStore

_one_stage = threading.RLock()
"""Held while a stage is made: training draws from torch's random numbers, which the threads of a
process share."""


@dataclass(frozen=True)
class Share:
    """The share of the stages of a build that a process makes, of several that divide them.

    Attributes:
        index: number of the share, from 0.
        count: number of shares.
    """

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def stages(self, targets: Iterable[Stage]) -> set[str]:
        """Return the names of the results that the process makes. Stages are dealt by depth and
        then by size, whether they are stored or not, so that all processes deal alike."""
        found: dict[str, Stage] = {}
        for stage in targets:
            _add_all(stage, found)
        dealt = sorted(found.values(), key=lambda stage: (stage.depth, -stage.size, stage.key))
        return {stage.result_name for stage in dealt[self.index :: self.count]}


def _add_all(stage: Stage, found: dict[str, Stage]) -> None:
    if stage.result_name not in found:
        found[stage.result_name] = stage
        for source in stage.inputs:
            _add_all(source, found)


def build(
    targets: Iterable[Stage],
    store: ResultStore,
    processes: int = 1,
    threads: int = 1,
    description: str = "stages",
    executor: Executor | None = None,
    share: Share | None = None,
) -> int:
    """Make the targets and all stages that they depend on, inputs first and large stages early.
    Stored results are kept; stages that another process makes are left to it, and waited for.

    Args:
        targets: stages whose results are needed.
        store: store of results.
        processes: number of stages made at a time; 1 makes them in this process.
        threads: torch threads per process.
        description: label of the progress bar.
        executor: makes the stages, in place of `processes`: of this machine or of a cluster whose
            workers share the folders of the run. It is not shut down. A process makes one stage at
            a time, so that threads are of no use.
        share: make only the stages of this share, and those that they depend on and nobody makes.

    Returns:
        Number of stages left to the other shares; 0 without `share`.

    Raises:
        Exception: the first error of a stage, with a note that names it. Stages that have not begun
            are cancelled.
    """
    wanted = sorted(targets, key=lambda stage: -stage.size)
    missing = _missing(wanted, store)
    own = set(missing) if share is None else share.stages(wanted) & missing.keys()
    needed = _missing([missing[name] for name in missing if name in own], store)
    count = min(processes, len(needed))
    with (
        _executor(executor, count, threads) as workers,
        tqdm(total=len(needed), desc=description, unit="stage", disable=not needed) as bar,
    ):
        _Building(needed, own, store, workers, bar).run()
    return 0 if share is None else sum(not store.has(name) for name in missing)


def _missing(targets: Iterable[Stage], store: ResultStore) -> dict[str, Stage]:
    """Return the stages without a stored result by its name, inputs before the stages that read
    them."""
    missing: dict[str, Stage] = {}
    for stage in targets:
        _collect(stage, store, missing)
    return missing


def _collect(stage: Stage, store: ResultStore, missing: dict[str, Stage]) -> None:
    """Add the stages without a stored result, inputs before the stages that read them."""
    if stage.result_name in missing or store.has(stage.result_name):
        return
    for source in stage.inputs:
        _collect(source, store, missing)
    missing[stage.result_name] = stage


@dataclass(frozen=True)
class _Workers:
    """What makes the stages.

    Attributes:
        executor: makes them.
        at_once: number of stages that it gets at a time; None for all that are ready.
        threads: torch threads to set; None to leave them as they are.
    """

    executor: Executor
    at_once: int | None
    threads: int | None


@contextmanager
def _executor(given: Executor | None, processes: int, threads: int) -> Iterator[_Workers]:
    if given is not None:
        yield _Workers(given, None, threads)
    elif processes > 1:
        # Fresh processes: a forked one would inherit torch's thread pool in an unknown state.
        with _Pool(processes, mp_context=get_context("spawn")) as pool:
            try:
                yield _Workers(pool, processes, threads)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    else:
        yield _Workers(_ThisProcess(), 1, None)


class _Pool(ProcessPoolExecutor):
    """A pool that notices the death of each of its processes.

    Python's own wakes up, and lists the processes to watch, before `submit` starts one (3.11). That
    one is not watched until something else happens, and the pool would wait for it for ever.
    """

    def submit(self, function: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        future = super().submit(function, *arguments, **named)
        super().submit(_nothing)
        return future


def _nothing() -> None:
    """Do nothing, but wake up the pool."""


class _ThisProcess(Executor):
    """Does what is submitted at once, in the thread that submits it."""

    def submit(self, function: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(function(*arguments, **named))
        except BaseException as error:
            done.set_exception(error)
        return done


class _Building:
    """The state of a build: which stages are left, and which are being made here."""

    def __init__(
        self,
        needed: dict[str, Stage],
        own: set[str],
        store: ResultStore,
        workers: _Workers,
        bar: Any,
    ) -> None:
        self._left, self._own = needed, own
        self._store, self._workers, self._bar = store, workers, bar
        self._running: dict[Future[bool], Stage] = {}
        self._elsewhere: dict[str, str] = {}
        self._watch = Watch()

    def run(self) -> None:
        """Make stages until all own ones are stored."""
        pauses = pauses_of_waiting()
        try:
            while not self._own.isdisjoint(self._left):
                before, running = len(self._left), len(self._running)
                self._start()
                self._finish(next(pauses))
                if len(self._left) < before or len(self._running) > running:
                    pauses = pauses_of_waiting()
        except BaseException:
            for future in self._running:
                future.cancel()
            raise

    def _start(self) -> None:
        """Submit stages that are ready and that no other process makes."""
        self._elsewhere, workers = {}, self._workers
        for stage in self._ready():
            if len(self._running) == workers.at_once:
                return
            if self._store.has(stage.result_name):
                self._is_stored(stage)
                continue
            claim, held = self._watch.look(self._store.path(stage.result_name))
            if claim is not None and held:
                self._elsewhere[stage.name] = claim.owner
                continue
            future = workers.executor.submit(
                _make_there, stage, self._store, workers.threads, claim
            )
            self._running[future] = stage

    def _ready(self) -> list[Stage]:
        """Stages whose inputs are stored, the own ones first, large ones before small ones."""
        running = {stage.result_name for stage in self._running.values()}
        ready = [
            stage
            for name, stage in self._left.items()
            if name not in running
            and not any(source.result_name in self._left for source in stage.inputs)
        ]
        return sorted(ready, key=lambda s: (s.result_name not in self._own, -s.size))

    def _finish(self, pause: float) -> None:
        """Wait until a stage is made, here or elsewhere, for `pause` seconds at most where others
        make some."""
        if not self._running:
            if self._elsewhere:
                self._wait(pause)
            return
        timeout = pause if self._elsewhere else None
        for future in wait(self._running, timeout, FIRST_COMPLETED).done:
            try:
                made = future.result()
            except BaseException as error:
                self._name(error, future)
                raise
            stage = self._running.pop(future)
            if made:
                self._is_stored(stage)

    def _is_stored(self, stage: Stage) -> None:
        del self._left[stage.result_name]
        self._bar.update()

    def _wait(self, pause: float) -> None:
        if pause == SPOKEN_PAUSE:
            names = [f"{name} (by {owner})" for name, owner in self._elsewhere.items()]
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
            tqdm.write(f"waiting for stages that others make: {shown}", file=sys.stderr)
        time.sleep(pause)

    def _name(self, error: BaseException, future: Future[bool]) -> None:
        """Add to an error which stage it is of; where a process died, which ones it may be of."""
        died = isinstance(error, BrokenExecutor)
        stages = self._running.values() if died else [self._running[future]]
        names = [stage.name for stage in stages]
        if not str(error).startswith(names[0]):
            error.add_note(f"while making {' or '.join(names)}")


def _make_there(stage: Stage, store: ResultStore, threads: int | None, ended: Claim | None) -> bool:
    """Make a stage in a worker (`Stage.make_unless_held`); the result is read from the store."""
    with _one_stage:
        if threads is not None:
            torch.set_num_threads(threads)
        return stage.make_unless_held(store, ended)
