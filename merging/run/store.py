"""Finished pieces of a run, kept in a folder and found again by what they were made from.

A piece is made by one run at a time, which holds a lock on `<piece>.lock`: so its resumable state
has one owner. Another run waits, and then finds the piece finished. The lock is the operating
system's (`flock`), so a run that was killed holds none, and the next one goes on from its last
epoch. On NFS the lock holds between machines too, where locks are on (the default since version 4).
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from merging.data.files import read_json, reading, write_json, write_tensors
from models.errors import DataError, TrainingError


@dataclass(frozen=True)
class Piece:
    """A finished piece of a run.

    Attributes:
        tensors: its weights.
        record: what it was made from and how it went (settings, epochs, seconds, metrics).
    """

    tensors: dict[str, Tensor]
    record: dict[str, Any]


@dataclass(frozen=True)
class PieceStore:
    """Where the pieces of one seed are.

    Attributes:
        folder: named `<name>-seed<seed>-<key>`, so that every setting and ablation finds the pieces
            that it shares with another.
        seed: of everything that is drawn.
    """

    folder: Path
    seed: int

    def piece(self, name: str, key: str, make: Callable[[Path], Piece]) -> Piece:
        """The piece `name` that was made from the settings `key` stands for; made now and kept if
        it is not there.

        `make` gets a path for its resumable state, which is removed once the piece is stored.

        Raises:
            DataError: the piece, or the state, is there and is damaged.
            TrainingError: the training diverged; the message begins with the name.
        """
        path = self._path(name, key, "safetensors")
        if path.is_file():
            return _read(path)
        with made_once(path):
            if path.is_file():
                return _read(path)
            checkpoint = self._path(name, key, "resume.pt")
            try:
                piece = make(checkpoint)
            except TrainingError as error:
                raise TrainingError(f"{name}: {error}") from error
            write_tensors(path, piece.tensors, {"record": json.dumps(piece.record)})
            checkpoint.unlink(missing_ok=True)
            return piece

    def record(self, name: str, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """As `piece`, for results without tensors."""
        path = self._path(name, key, "json")
        stored: dict[str, Any] | None = read_json(path)
        if stored is None:
            stored = make()
            write_json(path, stored)
        return stored

    def _path(self, name: str, key: str, ending: str) -> Path:
        return self.folder / f"{name}-seed{self.seed}-{key}.{ending}"


def _read(path: Path) -> Piece:
    with reading(path), safe_open(path, "pt") as stream:
        names = stream.keys()
        tensors = {name: stream.get_tensor(name) for name in names}
        return Piece(tensors, json.loads(stream.metadata()["record"]))


@contextmanager
def made_once(path: Path) -> Iterator[None]:
    """Hold the lock of the file that is about to be made; wait while another run makes it.

    Who gets it looks first whether the file is there by now. The lock's own file stays.

    Raises:
        DataError: the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        tqdm.write(f"waiting for another run that makes {path}", file=sys.stderr)
        lock.acquire(poll_interval=0.2)
    except OSError as error:
        expected = "expected a work folder on a file system with locks"
        raise DataError(f"got no lock on {path}.lock ({error}), {expected}") from error
    try:
        yield
    finally:
        lock.release()
