"""models.data.batch"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.ops.segment import segment_mean


@dataclass(frozen=True)
class GraphBatch:
    """Several graphs as one, without edges between them.

    Attributes:
        x: (N, 2) int64 atom features.
        edge_index: (2, E) int64 into the N atoms.
        edge_attr: (E, 2) int64 bond features.
        batch: (N,) int64, which graph an atom belongs to, in rising order.
        num_graphs: G.
    """

    x: Tensor
    edge_index: Tensor
    edge_attr: Tensor
    batch: Tensor
    num_graphs: int

    @property
    def num_nodes(self) -> int:
        """Number of atoms in all graphs together."""
        return int(self.x.shape[0])

    def to(self, device: torch.device | str) -> "GraphBatch":
        """The same batch on another device."""
        return GraphBatch(
            self.x.to(device),
            self.edge_index.to(device),
            self.edge_attr.to(device),
            self.batch.to(device),
            self.num_graphs,
        )


def mean_readout(h: Tensor, batch: GraphBatch) -> Tensor:
    """Mean over the atoms of each graph: h (N, *S) -> (G, *S)."""
    return segment_mean(h, batch.batch, batch.num_graphs)
