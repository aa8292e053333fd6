"""Results of stages, kept in a folder and found again by what they were made from.

A result is made by one run at a time, which holds a lock on `<result>.lock`: so its resumable state
has one owner. Another run waits, and then finds the result finished. The lock is the operating
system's (`flock`), so a run that was killed holds none, and the next one goes on from its last
epoch. On NFS the lock holds between machines too, where locks are on (the default since version 4).
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from merging.data.files import json_bytes, read_json, reading, tensor_bytes, write_bytes
from models.errors import DataError, TrainingError


@dataclass(frozen=True)
class StageResult:
    """What a stage made.

    Attributes:
        tensors: its weights; none for what is only measured.
        record: what it was made from and how it went (settings, epochs, seconds, scores).
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin so, without that."""
        begun = ((key, value) for key, value in self.tensors.items() if key.startswith(prefix))
        return {key.removeprefix(prefix): value for key, value in begun}


@dataclass(frozen=True)
class ResultStore:
    """Where results are: `<name>-seed<seed>-<key>.safetensors`, or `.json` for those without
    tensors. Every setting and ablation finds those that it shares with another.

    Attributes:
        folder: of all results.
    """

    folder: Path

    def find(self, place: str) -> StageResult | None:
        """The result at a place, `<name>-seed<seed>-<key>`; None if it is not there. Raises
        DataError: it is damaged."""
        tensors = self._path(place, "safetensors")
        if tensors.is_file():
            with reading(tensors), safe_open(tensors, "pt") as stream:
                names = stream.keys()
                found = {name: stream.get_tensor(name) for name in names}
                return StageResult(found, json.loads(stream.metadata()["record"]))
        record = read_json(self._path(place, "json"))
        return None if record is None else StageResult(record=record)

    def has(self, place: str) -> bool:
        """Whether a result is there, without reading it."""
        return any(self._path(place, ending).is_file() for ending in ("safetensors", "json"))

    def make(self, place: str, name: str, make: Callable[[Path], StageResult]) -> StageResult:
        """The result at a place; made now and kept if it is not there.

        Args:
            place: see `find`.
            name: of the stage, for messages.
            make: gets a path for its resumable state, which is removed once the result is stored.

        Raises:
            DataError: the result, or the state, is there and is damaged.
            TrainingError: the training diverged; the message begins with the name.
        """
        if (found := self.find(place)) is not None:
            return found
        with made_once(self.folder / place):
            if (found := self.find(place)) is not None:
                return found
            checkpoint = self._path(place, "resume.pt")
            try:
                result = make(checkpoint)
            except TrainingError as error:
                raise TrainingError(f"{name}: {error}") from error
            content, ending = _content(result)
            write_bytes(self._path(place, ending), content)
            checkpoint.unlink(missing_ok=True)
            return result

    def _path(self, place: str, ending: str) -> Path:
        return self.folder / f"{place}.{ending}"


def _content(result: StageResult) -> tuple[bytes, str]:
    """A file's bytes, and how its name ends."""
    if result.tensors:
        record = {"record": json.dumps(result.record)}
        return tensor_bytes(result.tensors, record), "safetensors"
    return json_bytes(result.record), "json"


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
