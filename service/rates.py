"""Sliding count of the molecules per client and minute, for one process or all workers."""

import fcntl
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import orjson

_WINDOW_SECONDS = 60

# By client: number of the minute, its count, the count of the minute before.
_Counts = dict[str, tuple[int, int, int]]


class Rates:
    """Molecules that each client has asked for in the last minute.

    The sliding minute is approximated from two fixed minutes: the count of the previous minute
    enters with the share of it that the sliding minute still covers.
    """

    def __init__(self, file: Path | None = None) -> None:
        """Start with nothing counted.

        Args:
            file: file that the workers of a service share; None counts in this process alone.
        """
        self._file = file
        self._counts: _Counts = {}

    def spend(self, client: str, molecules: int, limit: int) -> int:
        """Count molecules if they fit into the client's limit.

        Args:
            client: name of the client.
            molecules: number of molecules, at most `limit`.
            limit: molecules per minute.

        Returns:
            0 if they were counted; otherwise the seconds until they will fit, if nothing else is
            counted.
        """
        with self._locked_counts() as counts:
            minute, elapsed = divmod(time.monotonic(), _WINDOW_SECONDS)
            counted_minute, count, previous = counts.get(client, (int(minute), 0, 0))
            for _ in range(min(int(minute) - counted_minute, 2)):
                count, previous = 0, count
            room = limit - molecules - count
            if previous * (1 - elapsed / _WINDOW_SECONDS) <= room:
                counts[client] = (int(minute), count + molecules, previous)
                return 0
        return max(1, math.ceil(_seconds_until(room, count, previous, molecules, limit) - elapsed))

    @contextmanager
    def _locked_counts(self) -> Iterator[_Counts]:
        if self._file is None:
            yield self._counts
            return
        with self._file.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            counts = _read(file)
            yield counts
            file.truncate(0)
            file.write(orjson.dumps(counts))


def _seconds_until(room: int, count: int, previous: int, molecules: int, limit: int) -> float:
    """Return the seconds from the beginning of this minute until the molecules fit."""
    if room >= 0:  # once enough of the previous minute has left the window
        return _WINDOW_SECONDS * (1 - room / previous)
    # Once enough of this minute has left it, which begins with the next minute.
    return _WINDOW_SECONDS * (2 - (limit - molecules) / count)


def _read(file: IO[bytes]) -> _Counts:
    file.seek(0)
    content = file.read()
    return {name: tuple(entry) for name, entry in orjson.loads(content).items()} if content else {}
