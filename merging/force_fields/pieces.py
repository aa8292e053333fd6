"""What a study trains, each model kept once it is finished: teachers of both beginnings, and the
joint model."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merging.config.base import fingerprint
from merging.data.frames import FrameDataset
from merging.families.force_fields import ForceFieldStudyConfig, load_frames
from merging.force_fields.training import fit, start
from merging.run.store import Piece, PieceStore
from merging.training.settings import Beginning
from models.networks.schnet import ForceField, ForceFieldConfig, ForceFieldExpert, MergedForceField
from models.state_dict import load_tensors


@dataclass(frozen=True)
class Study:
    """A configuration, a seed, the data folder, and the work folder in which finished models are
    kept and found again."""

    config: ForceFieldStudyConfig
    seed: int
    data: Path
    work: Path

    @cached_property
    def datasets(self) -> dict[str, FrameDataset]:
        """By task. Raises DataError: see `load_frames`."""
        return load_frames(self.config, self.data)

    def untrained(self, tasks: tuple[str, ...], initial_seed: int) -> MergedForceField:
        """Random weights; every task's expert starts from the same ones."""
        torch.manual_seed(initial_seed)
        network, expert = ForceField(self.config.network), ForceFieldExpert(self.config.network)
        experts = {task: ForceFieldExpert(self.config.network) for task in tasks}
        for each in experts.values():
            each.load_state_dict(expert.state_dict())
        return start(network, experts, self.datasets)

    def initial_seed(self, task: str, beginning: Beginning) -> int:
        """The seed of the weights that a task's teacher starts from."""
        return (
            self.seed
            if beginning == "shared"
            else 1000 * (self.seed + 1) + self.config.tasks.index(task)
        )

    def teacher(self, task: str, beginning: Beginning) -> tuple[MergedForceField, dict[str, Any]]:
        """One task's model, trained on it alone, and how its training went."""

        def make(checkpoint: Path) -> Piece:
            model = self.untrained((task,), self.initial_seed(task, beginning))
            record = fit(
                model, {task: self.datasets[task]}, self.config.training, self.seed, checkpoint
            )
            return Piece(model.state_dict(), record)

        return self._model(f"teacher-{beginning}-{task}", (task,), make)

    def joint(self) -> tuple[MergedForceField, dict[str, Any]]:
        """One network trained on all tasks, each with its own embeddings and head; as many gradient
        steps as all teachers together."""

        def make(checkpoint: Path) -> Piece:
            model = self.untrained(self.config.tasks, self.seed)
            record = fit(model, self.datasets, self.config.training, self.seed, checkpoint)
            return Piece(model.state_dict(), record)

        return self._model("joint", self.config.tasks, make)

    def _model(
        self, name: str, tasks: tuple[str, ...], make: Callable[[Path], Piece]
    ) -> tuple[MergedForceField, dict[str, Any]]:
        """The finished model `name`; made now and kept if it is not there."""
        config = self.config
        key = fingerprint(config.network, config.frames, config.training, config.source, *tasks)
        piece = PieceStore(self.work / config.source, self.seed).piece(name, key, make)
        return (
            assemble(config.network, tasks, piece.tensors, f"{name} of seed {self.seed}"),
            piece.record,
        )


def assemble(
    config: ForceFieldConfig, tasks: tuple[str, ...], tensors: dict[str, Tensor], origin: str
) -> MergedForceField:
    """A model from its state dict. Raises CheckpointError (see `load_tensors`)."""
    model = MergedForceField(ForceField(config), {task: ForceFieldExpert(config) for task in tasks})
    load_tensors(model, tensors, origin)
    return model
