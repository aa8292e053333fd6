"""The note beside a shard that is being screened: who screens it, and which chunk is under way.

If a process dies, the next attempt at the shard knows from the note where. It is removed when the
shard is done.
"""

import os
import socket
import time
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from service.shards.places import beside, files_at

SILENT_SECONDS = 600.0
"""After this long without a word an attempt counts as dead, wherever it is. Only who cleans up, and
when, depends on it: no answer does."""


class Note(BaseModel):
    """State of a shard that is not done.

    Attributes:
        host, pid: of the process of the last attempt.
        temporary: address of its unfinished output.
        started, updated: seconds since 1970.
        chunk: index of the chunk under way; None while none is.
        rows: number of rows answered.
        suspects: chunks in which an attempt has died.
        error: why the last attempt failed; None if it did not, or had no time to say so.
    """

    model_config = ConfigDict(extra="ignore")

    host: str
    pid: int
    temporary: str
    started: float
    updated: float
    chunk: int | None = None
    rows: int = 0
    suspects: tuple[int, ...] = ()
    error: str | None = None

    @classmethod
    def new(cls, temporary: str, suspects: tuple[int, ...]) -> Self:
        """Return the note of an attempt that begins in this process."""
        now = time.time()
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            temporary=temporary,
            started=now,
            updated=now,
            suspects=suspects,
        )

    @property
    def is_alive(self) -> bool:
        """Whether the attempt is under way, as far as one can know."""
        if self.error is not None:
            return False
        if time.time() - self.updated > SILENT_SECONDS:
            return False
        if self.host != socket.gethostname():
            return True
        if self.pid == os.getpid():  # a container's first process has the same id every time
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    @property
    def all_suspects(self) -> tuple[int, ...]:
        """The chunks in which this attempt, if it is dead, or an earlier one has died."""
        return tuple(sorted({*self.suspects, *([] if self.chunk is None else [self.chunk])}))


def note_of(output: str) -> Note | None:
    """Return the note beside an output; None if there is none that can be read."""
    content = files_at(output).small(beside(output, ".note"))
    if content is None:
        return None
    try:
        return Note.model_validate_json(content)
    except ValidationError:  # written by another version
        return None


def write_note(output: str, note: Note) -> None:
    """Write the note beside an output."""
    note.updated = time.time()
    files_at(output).put(beside(output, ".note"), note.model_dump_json().encode())


def note_failure(output: str, why: str) -> None:
    """Write into the note beside an output why its attempt has ended, if the process had no time
    to. From then on the attempt counts as dead."""
    note = note_of(output)
    if note is not None and note.error is None:
        note.error = why
        write_note(output, note)


def remove_note(output: str) -> None:
    """Remove the note beside an output."""
    files_at(output).remove(beside(output, ".note"))


def clear(output: str) -> None:
    """Remove what a dead attempt has left beside an output that is done: a process may die after
    another has finished, or between its last two steps."""
    note = note_of(output)
    if note is not None and not note.is_alive:
        files_at(output).remove(note.temporary)
        remove_note(output)
