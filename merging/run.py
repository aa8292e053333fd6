"""One run: a configuration, a seed and a work folder in which finished pieces are kept and found again."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from merging.config import RunConfig, fingerprint
from merging.datasets import MoleculeDataset, load_dataset
from merging.files import write_tensors
from merging.finetuning import finetune
from models.backbone import Backbone, load_tensors, read_tensors
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

    @property
    def folder(self) -> Path:
        """Folder of this setting and seed."""
        return self.work / self.config.setting / f"seed{self.seed}"

    def dataset(self, task: str) -> MoleculeDataset:
        """A task's data set, featurised once."""
        return load_dataset(task, self.data, self.work / "data", self.workers)

    def pretrained(self) -> dict[str, Tensor]:
        """The checkpoint that all experts start from, checked against the backbone's shape."""
        section = self.config.pretrained
        candidates = [Path(section.weights), self.data.parent / section.weights]
        path = next((each for each in candidates if each.is_file()), None)
        if path is None:
            tried = " or ".join(str(each) for each in candidates)
            raise CheckpointError(f"got no pre-trained weights at {tried}; expected Hu et al.'s {Path(section.weights).name}")
        tensors = read_tensors(path)
        load_tensors(Backbone(section.backbone), tensors, str(path))
        return tensors

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


def finetuned(run: Run, task: str) -> Piece:
    """The fine-tuned model of a task: state dict of a GraphClassifier."""
    settings = run.config.finetune_for(task)

    def make(checkpoint: Path) -> Piece:
        result = finetune(run.dataset(task), run.pretrained(), run.config.pretrained.backbone, settings, run.seed, checkpoint, run.device)
        return Piece(result.tensors, {**result.record, "settings": settings.model_dump()})

    return run.piece(f"finetuned/{task}", fingerprint(run.config.pretrained, settings, task, run.seed), make)
