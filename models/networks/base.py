"""Interface of layered networks, on which adapters, routing and mergers work."""

from collections.abc import Callable
from typing import Protocol

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from models.data.batch import GraphBatch

SiteHook = Callable[[int, Tensor], Tensor]
"""Function (site, tensor) that returns the tensor to continue the pass with."""


class NetworkShape(BaseModel):
    """Kind and sizes of a network, the manifest's `backbone`.

    Attributes:
        kind: name of the architecture; selects the family of models.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str

    @property
    def size(self) -> tuple[int, int]:
        """Number of layers or blocks, and their width."""
        raise NotImplementedError


class LayeredShape(Protocol):
    """Shape of a network whose layers all have the same width."""

    @property
    def kind(self) -> str:
        """Name of the architecture."""
        ...

    @property
    def num_layers(self) -> int:
        """Number of layers L."""
        ...

    @property
    def hidden_dim(self) -> int:
        """Width d of every layer's output."""
        ...

    @property
    def in_dim(self) -> int | None:
        """Width of the first layer's input features; None if inputs are indices into embedding
        tables."""
        ...


class LayeredNetwork(nn.Module):
    """A graph network without readout and head: L layers, each followed by an adapter site.

    Attributes:
        config: shape of the network.
        gnns: L message-passing layers.
        batch_norms: L BatchNorm layers, or none.
    """

    config: LayeredShape
    gnns: nn.ModuleList
    batch_norms: nn.ModuleList

    def forward(
        self, batch: GraphBatch, correct: SiteHook | None = None, normalise: SiteHook | None = None
    ) -> Tensor:
        """Compute node embeddings of the last layer ("JK last"), (N, *S, d).

        Args:
            batch: the graphs.
            correct: applied to the output of every layer (adapters); it may add a dimension S of
                streams.
            normalise: applied after `correct`, in place of the layer's BatchNorm (statistics per
                task).
        """
        raise NotImplementedError
