"""Process pool that reads and draws molecules, and reads graphs. RDKit holds the GIL while it reads
or draws a molecule, which can take seconds for a hostile one.

- Chunks of different requests are interleaved. A request never occupies all processes, unless there
  is only one.
- If a chunk times out or its process dies, its molecules are read one by one. If a molecule times
  out, its process is killed and the client gets an error for that item; after three timeouts the
  remaining molecules of the request are not read.
- Killed processes are replaced.
- A short SMILES that is the only thing to do is read in this process: the round trip to another one
  takes longer than reading it.
"""

import asyncio
import multiprocessing
import os
import resource
import signal
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch
from numpy.typing import NDArray
from pebble import ProcessExpired, ProcessFuture, ProcessPool

from models.data.smiles_parser import is_short
from models.errors import GMergingError
from models.families.inputs import Graph, tensors_of
from service.core.reading import (
    MOLECULES,
    InputRequirements,
    ItemFailure,
    MoleculeLimits,
    Parsed,
    Source,
    map_guarded,
    precheck,
    read,
    read_all,
)

Loss = Literal["timeout", "died"]
LOSSES: tuple[Loss, ...] = ("timeout", "died")
"""Reasons why a process was replaced."""
_CHUNK = 16  # about 10 ms of work; the round trip to a process takes 0.5 ms
_MOST_TIMEOUTS = 3
_LOOK_SECONDS = 0.05
_START_SECONDS = 300.0  # of all processes together: on a busy machine importing torch takes long
_HOLD_SECONDS = 0.02
_FIRST = "C"
_NO_START = "the processes that read molecules do not work: got {} for C, expected it read"
# Address space, mostly of torch's libraries. A molecule that needs gigabytes gets an error.
_MOST_MEMORY_BYTES = 6 * 1024**3
# Result that a process sends: canonical SMILES, class and arrays of the graph, or an error. Not
# tensors, since torch would pass each by a file descriptor.
_Wire = tuple[str | None, str | None, Callable[..., Graph], list[NDArray[Any]]] | ItemFailure
Item = TypeVar("Item")
Result = TypeVar("Result")


class ProcessLostError(Exception):
    """The process that was reading a chunk died; the chunk has no results."""


class ParserStartError(GMergingError):
    """The processes of a new pool cannot read a molecule."""

    code = "parser_failed"


@dataclass
class _Request(Generic[Item, Result]):
    """State shared by the chunks of one request.

    Attributes:
        work: function of the process for a chunk, one result per item.
        verb: what it does, for error messages.
        gate: bounds the chunks that are under way.
        timeouts_left: molecules that may still time out before the rest is not tried.
    """

    work: Callable[[list[Item]], list[Result | ItemFailure]]
    verb: str
    gate: asyncio.Semaphore
    timeouts_left: int = _MOST_TIMEOUTS


@dataclass(eq=False)
class _Task:
    """A task of the pool. Cancelling `answer` does not cancel the task."""

    future: "ProcessFuture[list[Any]]"
    answer: asyncio.Future[list[Any]]
    started: float | None = None

    def is_late(self, seconds: float) -> bool:
        """Return True if the task has been running for longer than `seconds`."""
        if self.started is None and self.future.running():  # before, it waits for a process
            self.started = time.monotonic()
        return self.started is not None and time.monotonic() - self.started > seconds

    def deliver(self) -> None:
        """Copy the result or exception of the task to `answer`."""
        if self.answer.done():
            return
        if self.future.cancelled():
            self.answer.cancel()
        elif (error := self.future.exception()) is not None:
            self.answer.set_exception(error)
        else:
            self.answer.set_result(self.future.result())

    def give_up(self) -> bool:
        """Kill the process that runs the task and fail `answer` with TimeoutError. Returns False if
        the task has just ended."""
        if not self.future.cancel():
            return False
        if not self.answer.done():
            self.answer.set_exception(TimeoutError())
        return True


class Parser:
    """Reads molecules and graphs in a pool of processes."""

    def __init__(
        self,
        limits: MoleculeLimits,
        processes: int = 1,
        timeout_seconds: float = 5.0,
        on_loss: Callable[[Loss], None] = lambda _: None,
    ) -> None:
        """Create a pool, whose processes start with the first molecule.

        Args:
            limits: limits of one molecule.
            processes: number of processes.
            timeout_seconds: maximal time for one chunk, and for one molecule of a failed chunk.
            on_loss: called with the reason when a process is lost.
        """
        self._limits, self._processes, self._timeout_seconds, self._on_loss = (
            limits,
            processes,
            timeout_seconds,
            on_loss,
        )
        self._window = max(1, processes - 1)
        self._closed = False
        self._tasks: list[_Task] = []
        self._watching: asyncio.Task[None] | None = None
        # The fork server is started before any thread and has imported everything, so that a new
        # process starts within milliseconds.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([read.__module__])
        self._pool = self._new_pool()

    async def start(self) -> None:
        """Start all processes and let each read a molecule.

        Raises:
            ParserStartError: a process fails or does not start in time; the message says why.
        """
        seen: set[int] = set()
        deadline = time.monotonic() + _START_SECONDS
        while len(seen) < self._processes:
            # One task per process; tasks last a moment, so that every process gets one.
            futures = [
                self._pool.schedule(_read_first, args=[self._limits])
                for _ in range(self._processes)
            ]
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    answers = await asyncio.gather(*map(asyncio.wrap_future, futures))
            except TimeoutError:
                late = f"nothing after {_START_SECONDS:g} s"
                raise ParserStartError(_NO_START.format(late)) from None
            except Exception as error:
                lost = f"{type(error).__name__}: {error}"
                raise ParserStartError(_NO_START.format(lost)) from error
            for pid, smiles in answers:
                if smiles != _FIRST:
                    raise ParserStartError(_NO_START.format(smiles))
                seen.add(pid)

    async def parse(
        self,
        sources: Sequence[Source],
        requirements: InputRequirements = MOLECULES,
        *,
        idle: bool = False,
    ) -> list[Parsed | ItemFailure]:
        """Read molecules or graphs.

        Args:
            sources: unread molecules or graphs.
            requirements: requirements of the requested tasks.
            idle: True if there is no other request, which would wait while this process reads.

        Returns:
            One result per source, in their order; errors are returned, not raised.
        """
        if idle and len(sources) == 1 and isinstance(sources[0], str) and is_short(sources[0]):
            return read_all(sources, self._limits, requirements)
        errors = [precheck(source, self._limits, requirements) for source in sources]
        left = [source for source, error in zip(sources, errors, strict=True) if error is None]
        work = partial(_read_all, limits=self._limits, requirements=requirements)
        wires = await self._in_chunks(left, work, "read")
        results = (wire if isinstance(wire, ItemFailure) else _received(*wire) for wire in wires)
        return [next(results) if error is None else error for error in errors]

    async def apply(
        self, items: Sequence[Item], work: Callable[[Item], Result | ItemFailure], verb: str
    ) -> list[Result | ItemFailure]:
        """Apply a function to molecules.

        Args:
            items: what it takes, one by one.
            work: can be sent to a process.
            verb: what it does, for error messages.

        Returns:
            One result per item, in their order; errors are returned, not raised.
        """
        return await self._in_chunks(items, partial(map_guarded, work), verb)

    async def _in_chunks(
        self,
        items: Sequence[Item],
        work: Callable[[list[Item]], list[Result | ItemFailure]],
        verb: str,
    ) -> list[Result | ItemFailure]:
        """Run the work of a request in the processes, a few chunks at a time."""
        gate = asyncio.Semaphore(self._window)
        request: _Request[Item, Result] = _Request(work, verb, gate)
        chunks = [items[begin : begin + _CHUNK] for begin in range(0, len(items), _CHUNK)]
        if len(chunks) == 1:
            # Most requests; `gather` would create an asyncio task.
            return await self._run_chunk(chunks[0], request)
        found = await asyncio.gather(*(self._run_chunk(chunk, request) for chunk in chunks))
        return [result for chunk in found for result in chunk]

    def close(self) -> None:
        """Stop all processes without waiting for their tasks."""
        self._closed = True
        self._pool.stop()
        self._pool.join()

    def _new_pool(self) -> ProcessPool:
        with _our_path():
            forkserver.ensure_running()
        return ProcessPool(self._processes, initializer=_prepare, context=self._context)

    async def _run_chunk(
        self, chunk: Sequence[Item], request: _Request[Item, Result]
    ) -> list[Result | ItemFailure]:
        async with request.gate:
            if request.timeouts_left:
                with suppress(TimeoutError, ProcessLostError):
                    return await self._run(chunk, request)
            found: list[Result | ItemFailure] = []
            for item in chunk:
                result = await self._run_single(item, request)
                found.append(result)
            return found

    async def _run_single(
        self, item: Item, request: _Request[Item, Result]
    ) -> Result | ItemFailure:
        if not request.timeouts_left:
            return ItemFailure(
                "parse_timeout",
                f"not tried: {_MOST_TIMEOUTS} molecules of this request took more than"
                f" {self._timeout_seconds:g} s to {request.verb}",
            )
        for _ in range(2):  # a process may die for another reason, but hardly twice
            try:
                return (await self._run([item], request))[0]
            except ProcessLostError:
                continue
            except TimeoutError:
                request.timeouts_left -= 1
                return ItemFailure(
                    "parse_timeout",
                    f"took more than {self._timeout_seconds:g} s to {request.verb}"
                    " (parse_timeout_seconds)",
                )
        return ItemFailure("unreadable", "the process that read this molecule died, twice")

    async def _run(
        self, chunk: Sequence[Item], request: _Request[Item, Result]
    ) -> list[Result | ItemFailure]:
        """Run one task of the pool. If the request is cancelled, the task continues up to the
        timeout, since stopping it would kill the process."""
        pool = self._pool
        try:
            return await self._watched(pool.schedule(request.work, args=[list(chunk)]))
        except ProcessExpired:
            self._on_loss("died")
            raise ProcessLostError from None
        except RuntimeError:
            # If an idle process dies, the pool fails with all tasks scheduled since.
            if self._closed:
                raise
            if pool is self._pool:
                self._on_loss("died")
                self._pool = self._new_pool()
                pool.stop()
            raise ProcessLostError from None

    def _watched(self, future: "ProcessFuture[list[Any]]") -> asyncio.Future[list[Any]]:
        """Return a future of a task's result; on timeout the process is killed and the future fails
        with TimeoutError."""
        loop = asyncio.get_running_loop()
        task = _Task(future, loop.create_future())
        future.add_done_callback(
            lambda _: loop.is_closed() or loop.call_soon_threadsafe(task.deliver)
        )
        self._tasks.append(task)
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch(), name="watch parsers")
        return task.answer

    async def _watch(self) -> None:
        """Enforce the timeout while there are tasks. The pool's own timeout uses the wall clock,
        which can jump."""
        while self._tasks:
            await asyncio.sleep(_LOOK_SECONDS)
            self._tasks = [task for task in self._tasks if not task.future.done()]
            for task in self._tasks:
                if task.is_late(self._timeout_seconds) and task.give_up():
                    self._on_loss("timeout")


@contextmanager
def _our_path() -> Iterator[None]:
    """Set environment variables in a `with` block, so that Python processes started there import
    the same packages as this one.

    By default a new process has the current folder first in its path, where a user's `models.py`
    would hide our package, and it does not find our packages if they are not installed.
    """
    root = str(Path(__file__).parents[2])
    ours = {"PYTHONSAFEPATH": "1"}
    if root != sysconfig.get_path("purelib"):  # which is on the path anyway
        ours["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _prepare() -> None:
    """Initialise a process of the pool: SIGTERM ends it at once, while a Python handler would wait
    until the molecule is read; Ctrl-C at the service's terminal does not end it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY_BYTES, _MOST_MEMORY_BYTES))
    torch.set_num_threads(1)


def _read_first(limits: MoleculeLimits) -> tuple[int, str | None]:
    """Read a molecule; return the process id, and the canonical SMILES or the error message."""
    (molecule,) = read_all([_FIRST], limits, MOLECULES)
    time.sleep(_HOLD_SECONDS)
    return os.getpid(), molecule.message if isinstance(molecule, ItemFailure) else molecule.smiles


def _read_all(
    sources: Sequence[Source], limits: MoleculeLimits, requirements: InputRequirements
) -> list[_Wire]:
    return [_sent(molecule) for molecule in read_all(sources, limits, requirements)]


def _sent(molecule: Parsed | ItemFailure) -> _Wire:
    if isinstance(molecule, ItemFailure):
        return molecule
    return (
        molecule.smiles,
        molecule.key,
        type(molecule.graph),
        [tensor.numpy() for tensor in tensors_of(molecule.graph)],
    )


def _received(
    smiles: str | None, key: str | None, kind: Callable[..., Graph], arrays: Sequence[NDArray[Any]]
) -> Parsed:
    return Parsed(smiles, kind(*(torch.from_numpy(array) for array in arrays)), key)
