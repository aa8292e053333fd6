"""One run: a configuration, a seed and a work folder in which finished pieces are kept and found again."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from merging.config import RunConfig
from merging.datasets import MoleculeDataset, load_dataset
from merging.files import read_json, write_json, write_tensors
from models.backbone import load_backbone
from models.errors import CheckpointError


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
class Run:
    """Where a run reads and writes, and on what it computes.

    Attributes:
        config: the setting.
        seed: of everything that is drawn.
        data: the data folder.
        work: the work folder; finished pieces live in `<setting>/seed<N>/`, featurised data in `data/`.
        device: cpu or cuda.
        workers: processes for featurising.
    """

    config: RunConfig
    seed: int
    data: Path
    work: Path
    device: torch.device
    workers: int = 1
    _datasets: dict[str, MoleculeDataset] = field(default_factory=dict, repr=False, compare=False)

    @property
    def folder(self) -> Path:
        """Folder of this setting and seed."""
        return self.work / self.config.setting / f"seed{self.seed}"

    def write_settings(self) -> None:
        """Leave in the folder what the run uses: `run.json`."""
        content = {"config": self.config.model_dump(mode="json"), "seed": self.seed, "device": str(self.device), "threads": torch.get_num_threads()}
        write_json(self.folder / "run.json", content)

    def dataset(self, task: str) -> MoleculeDataset:
        """A task's data set: featurised once ever, read once a run."""
        if task not in self._datasets:
            self._datasets[task] = load_dataset(task, self.config.dataset_for(task), self.data, self.work / "data", self.workers)
        return self._datasets[task]

    def pretrained_path(self) -> Path:
        """The file of the checkpoint that all experts start from: as given, or beside the data folder. Raises CheckpointError if there is none."""
        weights = Path(self.config.pretrained.weights)
        candidates = (weights, self.data.parent / weights)
        for path in candidates:
            if path.is_file():
                return path
        raise CheckpointError(f"got no pre-trained weights at {' or '.join(map(str, candidates))}, expected Hu et al.'s {weights.name}")

    def pretrained(self) -> dict[str, Tensor]:
        """The checkpoint that all experts start from, checked against the backbone's shape."""
        return load_backbone(self.pretrained_path(), self.config.pretrained.backbone).state_dict()

    def piece(self, name: str, key: str, make: Callable[[Path], Piece]) -> Piece:
        """The piece `<folder>/<name>.safetensors` if it was made from the same settings (`key`), else made now and kept.

        `make` gets a path for its resumable state, which is removed once the piece is stored.
        """
        path, checkpoint = self.folder / f"{name}.safetensors", self.folder / f"{name}.{key}.resume.pt"
        if path.is_file():
            with safe_open(path, "pt") as stream:
                metadata = stream.metadata()
                if metadata["key"] == key:
                    tensors = {each: stream.get_tensor(each) for each in stream.keys()}  # noqa: SIM118 - not a dict
                    return Piece(tensors, json.loads(metadata["record"]))
        piece = make(checkpoint)
        write_tensors(path, piece.tensors, {"key": key, "record": json.dumps(piece.record)})
        checkpoint.unlink(missing_ok=True)
        return piece

    def record(self, name: str, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """As `piece`, for results without tensors, in `<folder>/<name>.json`."""
        path = self.folder / f"{name}.json"
        stored = read_json(path)
        if stored is None or stored["key"] != key:
            stored = {"key": key, "record": make()}
            write_json(path, stored)
        record: dict[str, Any] = stored["record"]
        return record
