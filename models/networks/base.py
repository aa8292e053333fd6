"""What adapters, routing and mergers need of a network of layers."""

from collections.abc import Callable
from typing import Protocol

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from models.data.batch import GraphBatch

SiteHook = Callable[[int, Tensor], Tensor]
"""Gets a site's number and its tensor, and returns the tensor that goes on."""


class NetworkShape(BaseModel):
    """Shape of a network; it travels in the artifact's manifest.

    Attributes:
        kind: which network; each family of models knows some of these names.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str

    @property
    def size(self) -> tuple[int, int]:
        """How many layers or blocks there are, and how wide they are."""
        raise NotImplementedError


class LayeredShape(Protocol):
    """Shape of a network whose layers are all of one width."""

    @property
    def kind(self) -> str:
        """Which network."""
        ...

    @property
    def num_layers(self) -> int:
        """L."""
        ...

    @property
    def hidden_dim(self) -> int:
        """Width d of every layer's output."""
        ...

    @property
    def in_dim(self) -> int | None:
        """Width of the node features that enter the first layer; None where they are looked up in
        embedding tables."""
        ...


class LayeredNetwork(nn.Module):
    """A graph network without readout and head: L layers with a site for an adapter after each.

    Attributes:
        config: its shape.
        gnns: L layers.
        batch_norms: L BatchNorms, or none.
    """

    config: LayeredShape
    gnns: nn.ModuleList
    batch_norms: nn.ModuleList

    def forward(
        self, batch: GraphBatch, correct: SiteHook | None = None, normalise: SiteHook | None = None
    ) -> Tensor:
        """Node embeddings of the last layer ("JK last"), (N, *S, d).

        Args:
            batch: the graphs.
            correct: gets the number and the output of every layer, and returns what goes on
                (adapters); it may add a dimension of streams.
            normalise: gets the same after `correct`, in place of the layer's own BatchNorm
                (statistics per task).
        """
        raise NotImplementedError
