"""Results of stages, stored in a folder under a name that holds the hash of their inputs.

A result is made by one process at a time, which holds the lease `<result>.lease.<n>` and thus owns
the resumable state (`merging.data.lease`). Other processes, on this machine or another, wait or
make something else, and then find the result finished. Where the owner is killed, the next one
resumes at its last epoch.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from merging.data.files import json_bytes, read_json, reading, tensor_bytes, write_bytes
from merging.data.lease import Claim, made_once, take
from models.errors import TrainingError


@dataclass(frozen=True)
class StageResult:
    """The result of a stage.

    Attributes:
        tensors: weights by name; empty for a stage that only measures.
        record: plain values: settings, epochs, seconds, scores.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names start with a prefix, by the rest of their names."""
        matches = ((key, value) for key, value in self.tensors.items() if key.startswith(prefix))
        return {key.removeprefix(prefix): value for key, value in matches}

    def by_task(self, prefix: str) -> dict[str, dict[str, Tensor]]:
        """Return the tensors named `<prefix><task>/<key>` as one state dict per task."""
        tasks = dict.fromkeys(key.split("/")[0] for key in self.under(prefix))
        return {task: self.under(f"{prefix}{task}/") for task in tasks}


@dataclass(frozen=True)
class ResultStore:
    """A folder of results, `<name>-seed<seed>-<key>.safetensors`, or `.json` for those without
    tensors. Runs that share a stage share its result.

    Attributes:
        folder: the folder of all results.
    """

    folder: Path

    def find(self, result_name: str) -> StageResult | None:
        """Read a result by its name, `<name>-seed<seed>-<key>`; None if there is none. Raises
        DataError: the file is damaged."""
        tensors = self._path(result_name, "safetensors")
        if tensors.is_file():
            with reading(tensors), safe_open(tensors, "pt") as stream:
                names = stream.keys()
                loaded = {name: stream.get_tensor(name) for name in names}
                return StageResult(loaded, json.loads(stream.metadata()["record"]))
        record = read_json(self._path(result_name, "json"))
        return None if record is None else StageResult(record=record)

    def has(self, result_name: str) -> bool:
        """Return whether a result exists, without reading it."""
        return any(self._path(result_name, ending).is_file() for ending in ("safetensors", "json"))

    def path(self, result_name: str) -> Path:
        """Return the path of a result's files, without their endings."""
        return self.folder / result_name

    def make(self, result_name: str, name: str, make: Callable[[Path], StageResult]) -> StageResult:
        """Return a result; make and store it if it does not exist. Wait while another process makes
        it.

        Args:
            result_name: see `find`.
            name: name of the stage, for error messages.
            make: makes the result; its argument is a path for resumable state, which is removed
                once the result is stored.

        Raises:
            DataError: the stored result or the resumable state is damaged.
            TrainingError: the training diverged; the message begins with the stage's name.
        """
        if (found := self.find(result_name)) is not None:
            return found
        with made_once(self.path(result_name)):
            return self._made(result_name, name, make)

    def make_unless_held(
        self, result_name: str, name: str, make: Callable[[Path], StageResult], ended: Claim | None
    ) -> bool:
        """Make and store a result (`make`), unless another process holds its lease.

        Args:
            result_name, name, make: see `make`.
            ended: the lease that has ended, see `merging.data.lease.take`.

        Returns:
            Whether the result is stored now.
        """
        if self.has(result_name):
            return True
        if (lease := take(self.path(result_name), ended)) is None:
            return False
        with lease:
            self._made(result_name, name, make)
        return True

    def _made(
        self, result_name: str, name: str, make: Callable[[Path], StageResult]
    ) -> StageResult:
        """Make and store a result, whose lease this process holds."""
        if (found := self.find(result_name)) is not None:
            return found
        checkpoint = self._path(result_name, "resume.pt")
        try:
            result = make(checkpoint)
        except TrainingError as error:
            raise TrainingError(f"{name}: {error}") from error
        # Another process may be done that took over while this one was suspended.
        found = self.find(result_name)
        if found is None:
            content, ending = _content(result)
            write_bytes(self._path(result_name, ending), content)
        checkpoint.unlink(missing_ok=True)
        return found or result

    def _path(self, result_name: str, ending: str) -> Path:
        return self.folder / f"{result_name}.{ending}"


def _content(result: StageResult) -> tuple[bytes, str]:
    """Content and suffix of the file of a result."""
    if result.tensors:
        record = {"record": json.dumps(result.record)}
        return tensor_bytes(result.tensors, record), "safetensors"
    return json_bytes(result.record), "json"
