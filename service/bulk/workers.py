"""Several processes that answer groups of records, each with a model of its own.

A process is started as `python -c`, and not by `multiprocessing`, which would import the caller's
script again. It reads pickled groups from its standard input and writes the
pickled rows, each after its length, to its standard output. It ends with its input.
"""

import asyncio
import os
import pickle
import signal
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from models.errors import GMergingError
from service.bulk.flow import in_order
from service.bulk.local import WINDOW, Described, Group, LocalAnswering, LocalQuery, Rows
from service.core.memory import limit_malloc_arenas

_LENGTH = struct.Struct("<Q")
_CLOSE_SECONDS = 5.0


class WorkerLostError(GMergingError):
    """A process that answered groups has ended."""

    code = "process_lost"


@dataclass(frozen=True)
class _Refusal:
    """Error of a process; exceptions with arguments of their own cannot be unpickled."""

    code: str
    message: str


class Workers:
    """Answers groups of records in several processes."""

    def __init__(self, query: LocalQuery, count: int) -> None:
        """Create the processes' descriptions; `start` starts them."""
        self._workers = [_Worker(query) for _ in range(count)]
        self.window = WINDOW * count

    async def start(self) -> None:
        """Start the processes and load a model in each.

        Raises:
            GMergingError: the model, or what it is asked for, cannot be used.
        """
        described = await asyncio.gather(*(worker.start() for worker in self._workers))
        self.described: Described = described[0]

    async def __call__(self, group: Group) -> Rows:
        """Return the rows of a group, by the process that has least to do."""
        worker = min(self._workers, key=lambda worker: worker.waiting)
        rows: Rows = await worker.ask(group)
        return rows

    async def close(self) -> None:
        """Stop the processes."""
        await asyncio.gather(*(worker.close() for worker in self._workers))


class _Worker:
    """One process. Attribute `waiting`: number of groups that it has not answered."""

    def __init__(self, query: LocalQuery) -> None:
        self._query = query
        self._process: asyncio.subprocess.Process | None = None
        self._reading = asyncio.Lock()
        self.waiting = 0

    async def start(self) -> Described:
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", f"from {__name__} import main; main()"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
        )
        described: Described = await self.ask(self._query)
        return described

    async def ask(self, message: Any) -> Any:
        """Send a message and return its answer; answers come in the order of the messages."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        self.waiting += 1
        try:
            process.stdin.write(pickle.dumps(message))
            async with self._reading:
                await process.stdin.drain()
                (length,) = _LENGTH.unpack(await process.stdout.readexactly(_LENGTH.size))
                answer = pickle.loads(await process.stdout.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            got = f"got the end of process {process.pid} (status {await process.wait()})"
            remedy = "expected its answer: try fewer --processes, the same command goes on"
            raise WorkerLostError(f"{got}, {remedy}") from None
        finally:
            self.waiting -= 1
        if isinstance(answer, _Refusal):
            error = GMergingError(answer.message)
            error.code = answer.code
            raise error
        return answer

    async def close(self) -> None:
        """End the process: it ends with its input, or is killed if it is busy for long."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), _CLOSE_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()


def main() -> None:
    """Answer the groups that come on standard input."""
    # Ctrl-C reaches all processes of a terminal; the first one stops the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limit_malloc_arenas()
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # what a library prints is no answer
        asyncio.run(_serve(sys.stdin.buffer, answers))


async def _serve(messages: BinaryIO, answers: BinaryIO) -> None:
    def send(answer: Any) -> None:
        data = pickle.dumps(answer)
        answers.write(_LENGTH.pack(len(data)) + data)
        answers.flush()

    async def groups() -> AsyncIterator[Group]:
        while True:
            try:
                yield await asyncio.to_thread(pickle.load, messages)
            except EOFError:
                return

    try:
        answering = LocalAnswering(pickle.load(messages))
    except GMergingError as error:
        send(_Refusal(error.code, str(error)))
        return
    send(answering.described)
    try:
        async with aclosing(in_order(groups(), answering, window=WINDOW)) as found:
            async for rows in found:
                await asyncio.to_thread(send, rows)
    except BrokenPipeError:
        pass  # nobody waits for the answers
    finally:
        await answering.close()
