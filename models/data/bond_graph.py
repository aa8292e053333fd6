"""Molecules with numeric features of atoms and directed bonds, for D-MPNNs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.errors import InvalidInputError


@dataclass(frozen=True)
class BondGraph:
    """One molecule.

    Attributes:
        x: (N, d_v) float32, features of atoms.
        edge_index: (2, E) int64, sources in the first row. Edges 2k and 2k + 1 are the two
            directions of bond k.
        edge_attr: (E, d_e) float32, features of bonds, the same in both directions.
    """

    x: Tensor
    edge_index: Tensor
    edge_attr: Tensor

    @property
    def num_nodes(self) -> int:
        """Number of atoms."""
        return int(self.x.shape[0])


@dataclass(frozen=True)
class BondBatch:
    """Several molecules as one graph; fields as in `BondGraph`.

    Attributes:
        batch: (N,) int64, molecule of each atom, ascending.
        num_graphs: number of molecules G.
    """

    x: Tensor
    edge_index: Tensor
    edge_attr: Tensor
    batch: Tensor
    num_graphs: int

    @property
    def num_nodes(self) -> int:
        """Number of atoms of all molecules together."""
        return int(self.x.shape[0])

    def to(self, device: torch.device | str) -> "BondBatch":
        """Copy the batch to a device."""
        return BondBatch(
            self.x.to(device),
            self.edge_index.to(device),
            self.edge_attr.to(device),
            self.batch.to(device),
            self.num_graphs,
        )


def collate_bonds(graphs: Sequence[BondGraph]) -> BondBatch:
    """Join molecules into one batch, in their order. Raises InvalidInputError: there are none, or
    they differ in the number of features."""
    widths = {(graph.x.shape[1], graph.edge_attr.shape[1]) for graph in graphs}
    if len(widths) != 1:
        got = f"graphs: got {sorted(widths)} features of an atom and a bond"
        raise InvalidInputError(f"{got}, expected at least one molecule, and the same for all")
    counts = torch.tensor([graph.num_nodes for graph in graphs])
    offsets = (counts.cumsum(0) - counts).tolist()
    shifted = [graph.edge_index + k for graph, k in zip(graphs, offsets, strict=True)]
    return BondBatch(
        torch.cat([graph.x for graph in graphs]),
        torch.cat(shifted, dim=1),
        torch.cat([graph.edge_attr for graph in graphs]),
        torch.repeat_interleave(torch.arange(len(graphs)), counts),
        len(graphs),
    )
