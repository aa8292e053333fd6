"""Finds the records that end the process that reads or predicts them.

The records of a chunk in which a process has died are answered one by one in a child, whose CPU
time and memory are limited for each. A child that dies twice at the same record has found one; what
the child answers is thrown away, so that a chunk without such a record has the same answers as if
nobody had died.

The child is started as `python -c`, as those of `service.bulk.workers` are. It reads the model and
then the records, pickled, from its standard input, and writes a line for each to its standard
output. It ends with its input.
"""

import contextlib
import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, BinaryIO

from models.errors import GMergingError
from service.core.memory import limit_malloc_arenas
from service.core.reading import Record
from service.shards.answering import ROW_CPU_SECONDS, Answering, cpu_limit
from service.shards.processes import environment, how_it_ended
from service.shards.request import ScreenModel

_MOST_MEMORY_BYTES = 8 * 1024**3  # of address space, mostly of torch's libraries
_READY = b"ready\n"
_ANSWERED = b"answered\n"
_MOST_DEATHS = 2  # a process may die for another reason, but hardly twice at the same record


class ChildStartError(GMergingError):
    """The child that would answer records one by one cannot load the model."""

    code = "process_lost"


def crashes(model: ScreenModel, records: Sequence[Record]) -> dict[int, str]:
    """Return the records that end their process, by position, and how they do.

    Args:
        model: what answers.
        records: of one chunk.

    Raises:
        ChildStartError: the child does not start.
    """
    found: dict[int, str] = {}
    deaths = position = 0
    while position < len(records):
        child = _Child(model)
        try:
            while position < len(records):
                problem = child.answers(records[position])
                if problem is None:
                    deaths, position = 0, position + 1
                    continue
                deaths += 1
                if deaths == _MOST_DEATHS:
                    found[position] = problem
                    deaths, position = 0, position + 1
                break
        finally:
            child.close()
    return found


class _Child:
    def __init__(self, model: ScreenModel) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
        )
        try:
            reply = self._ask(model)
        except BaseException:
            self.close()
            raise
        if reply != _READY:
            got = f"got the end of a process that loads the model ({self._status()})"
            self.close()
            raise ChildStartError(f"{got}, expected it to start")

    def answers(self, record: Record) -> str | None:
        """Answer a record; return how the process ended if it did."""
        reply = self._ask(record)
        if reply == _ANSWERED:
            return None
        if reply:
            return reply.decode().strip()
        self._process.wait()
        return f"its process ended ({self._status()})"

    def _ask(self, message: Any) -> bytes:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            pickle.dump(message, stdin)
            stdin.flush()
        except BrokenPipeError:
            return b""
        return stdout.readline()

    def _status(self) -> str:
        return how_it_ended(self._process.wait())

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # it has died with a message unread
                pipe.close()


def main() -> None:
    """Answer the records that come on standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit_malloc_arenas()
    with os.fdopen(os.dup(1), "wb") as replies:
        os.dup2(2, 1)  # what a library prints is no reply
        serve(sys.stdin.buffer, replies)


def serve(messages: BinaryIO, replies: BinaryIO) -> None:
    """Load the model that comes first, and answer the records after it until the input ends."""
    answering = Answering(pickle.load(messages))
    if answering.info.device == "cpu":  # a GPU's driver maps much more than it uses
        resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY_BYTES, _MOST_MEMORY_BYTES))
    replies.write(_READY)
    while True:
        replies.flush()
        try:
            record = pickle.load(messages)
        except EOFError:
            return
        with cpu_limit(ROW_CPU_SECONDS * answering.settings.threads):
            try:
                answering([record])
                reply = _ANSWERED
            except Exception as error:
                shown = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                reply = f"the model failed ({shown})\n".encode("ascii", "backslashreplace")
        replies.write(reply)
