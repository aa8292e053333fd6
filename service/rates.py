"""How many molecules each client asked for within the last minute, in one process or in all
workers of a service."""

import fcntl
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import orjson

_WINDOW_SECONDS = 60

_Counts = dict[str, tuple[int, int, int]]  # by client: which minute, its count, the count before


class Rates:
    """Sliding windows: the count of the minute before goes into the last minute's by the share of
    it that the last minute still covers."""

    def __init__(self, file: Path | None = None) -> None:
        """Begin with nothing counted.

        Args:
            file: that the workers of one service share; None: this process is alone.
        """
        self._file = file
        self._counts: _Counts = {}

    def spend(self, client: str, molecules: int, most: int) -> int:
        """Count molecules if they fit.

        Args:
            client: its name.
            molecules: at most `most` of them.
            most: in any minute.

        Returns:
            0 if they were counted, otherwise the seconds until they will fit, if nobody spends.
        """
        with self._shared() as counts:
            minute, elapsed = divmod(time.monotonic(), _WINDOW_SECONDS)
            last, count, before = counts.get(client, (int(minute), 0, 0))
            for _ in range(min(int(minute) - last, 2)):
                count, before = 0, count
            room = most - molecules - count
            if before * (1 - elapsed / _WINDOW_SECONDS) <= room:
                counts[client] = (int(minute), count + molecules, before)
                return 0
        return max(1, math.ceil(_seconds_until(room, count, before, molecules, most) - elapsed))

    @contextmanager
    def _shared(self) -> Iterator[_Counts]:
        if self._file is None:
            yield self._counts
            return
        with self._file.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            counts = _read(file)
            yield counts
            file.truncate(0)
            file.write(orjson.dumps(counts))


def _seconds_until(room: int, count: int, before: int, molecules: int, most: int) -> float:
    """From the beginning of this minute until there is room."""
    if room >= 0:  # once enough of the minute before has gone
        return _WINDOW_SECONDS * (1 - room / before)
    # Once enough of this minute has gone, which begins to go with the next.
    return _WINDOW_SECONDS * (2 - (most - molecules) / count)


def _read(file: IO[bytes]) -> _Counts:
    file.seek(0)
    content = file.read()
    return {name: tuple(entry) for name, entry in orjson.loads(content).items()} if content else {}
