"""Teachers of joint alignment: models of one task that give outputs for any molecule."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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

    def outputs(self, batch: Any) -> Tensor:
        """Compute logits, or the values of a regression, on the batch's device: (G, C)."""


@dataclass(frozen=True)
class NetworkTeacher:
    """A network with a linear head on its graph embedding.

    Attributes:
        labels: see `Teacher`.
        head: on the graph embedding.
        shape: shape of the network.
        trace: runs the network and returns its layers' outputs and its graph embedding.
        answer: computes the outputs alone, in a third of the time; None computes them by `trace`.
    """

    labels: tuple[str, ...]
    head: nn.Linear
    shape: LayeredShape
    trace: Callable[[GraphBatch], LayerOutputs]
    answer: Callable[[GraphBatch], Tensor] | None = None

    @torch.no_grad()
    def outputs(self, batch: GraphBatch) -> Tensor:
        """See `Teacher.outputs`."""
        if self.answer is not None:
            return self.answer(batch)
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

    def outputs(self, batch: Any) -> Tensor:
        """See `Teacher.outputs`."""
        return torch.stack([member.outputs(batch) for member in self.members]).mean(0)
