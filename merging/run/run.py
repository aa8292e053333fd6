"""One run: a configuration, a seed and a work folder in which finished pieces are kept and found
again."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merging.config.base import fingerprint
from merging.data.checkpoints import find_checkpoint, origin
from merging.data.files import sha256
from merging.data.molecule_dataset import MoleculeDataset, load_dataset
from merging.run.config import RunConfig
from merging.run.store import Piece, PieceStore
from models.networks.hu2020 import load_backbone


@dataclass(frozen=True)
class Run:
    """Where a run reads and writes, and on what it computes.

    Attributes:
        config: the setting.
        seed: of everything that is drawn.
        data: the data folder.
        work: the work folder; finished pieces live in `pieces/`, named by what they were made from,
            so that every setting, seed and ablation finds the pieces that it shares with another;
            featurised data lives in `data/`.
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

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which reads data sets from the cache itself."""
        return {**vars(self), "_datasets": {}}

    def varied(self, **sections: Mapping[str, Any]) -> "Run":
        """The same run with some settings changed (see `RunConfig.varied`); data that was read is
        shared."""
        return replace(self, config=self.config.varied(sections))

    def dataset(self, task: str) -> MoleculeDataset:
        """A task's data set: featurised once ever, read once a run."""
        if task not in self._datasets:
            self._datasets[task] = load_dataset(
                task, self.config.dataset_for(task), self.data, self.work / "data", self.workers
            )
        return self._datasets[task]

    def pretrained_path(self) -> Path:
        """The file of the checkpoint that all experts start from.

        Raises:
            CheckpointError: see `find_checkpoint`.
        """
        return find_checkpoint(self.config.pretrained.weights, self.work, self.data)

    def pretrained_source(self) -> str:
        """Where that checkpoint came from, as the configuration says or `origin` finds."""
        given = self.config.pretrained
        return given.source or origin(given.weights, self.pretrained_path())

    def start_key(self) -> str:
        """What all experts start from: the backbone's shape, and the checkpoint by its bytes."""
        return fingerprint(self.config.pretrained.backbone, sha256(self.pretrained_path()))

    def pretrained(self) -> dict[str, Tensor]:
        """The checkpoint that all experts start from, checked against the backbone's shape."""
        return load_backbone(self.pretrained_path(), self.config.pretrained.backbone).state_dict()

    def piece(self, name: str, key: str, make: Callable[[Path], Piece]) -> Piece:
        """The piece `name` that was made from the settings `key` stands for, see
        `PieceStore.piece`."""
        return self._store.piece(name, key, make)

    def record(self, name: str, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """As `piece`, for results without tensors."""
        return self._store.record(name, key, make)

    @property
    def _store(self) -> PieceStore:
        return PieceStore(self.work / "pieces", self.seed)
