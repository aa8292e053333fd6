"""Results of stages, kept in a folder and found again by what they were made from.

A result is made by one run at a time, which holds a lock on `<result>.lock`: so its resumable state
has one owner. Another run waits, and then finds the result finished. The lock is the operating
system's (`flock`), so a run that was killed holds none, and the next one goes on from its last
epoch. On NFS the lock holds between machines too, where locks are on (the default since version 4).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from merging.data.files import json_bytes, made_once, read_json, reading, tensor_bytes, write_bytes
from models.errors import TrainingError


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
