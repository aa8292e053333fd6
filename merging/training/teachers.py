"""Teachers of joint alignment: models of one task that give outputs for any molecule."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from models.data.batch import GraphBatch
from models.experts.adapter import LayerOutputs
from models.networks.base import LayeredShape


class Teacher(Protocol):
    """Interface of a model of one task that is imitated.

    A model of several tasks is several teachers.
    """

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the C labels or classes, in the order of the outputs."""

    @property
    def head(self) -> nn.Linear | None:
        """A linear head that the student's may start as; None if the teacher has none."""

    def outputs(self, batch: GraphBatch) -> Tensor:
        """Compute logits, or the values of a regression, on the batch's device: (G, C)."""


@dataclass(frozen=True)
class NetworkTeacher:
    """A network with a linear head on its graph embedding.

    Attributes:
        labels, head: see `Teacher`.
        shape: shape of the network.
        trace: runs the network and returns its layers' outputs and its graph embedding.
    """

    labels: tuple[str, ...]
    head: nn.Linear
    shape: LayeredShape
    trace: Callable[[GraphBatch], LayerOutputs]

    @torch.no_grad()
    def outputs(self, batch: GraphBatch) -> Tensor:
        """See `Teacher.outputs`."""
        outputs: Tensor = self.head(self.trace(batch).graph_embedding)
        return outputs


@dataclass(frozen=True)
class EnsembleTeacher:
    """The mean of several teachers' outputs: logits, or the values of a regression.

    Attributes:
        members: teachers of the same labels.
    """

    members: Sequence[Teacher]

    @property
    def labels(self) -> tuple[str, ...]:
        """See `Teacher.labels`."""
        return self.members[0].labels

    @property
    def head(self) -> nn.Linear | None:
        """The first member's head: hidden units of different members do not correspond."""
        return self.members[0].head

    def outputs(self, batch: GraphBatch) -> Tensor:
        """See `Teacher.outputs`."""
        return torch.stack([member.outputs(batch) for member in self.members]).mean(0)
