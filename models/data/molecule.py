"""Molecular graphs in the vocabulary of Hu et al. 2020, one by one and packed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from models.data.batch import GraphBatch
from models.errors import InvalidInputError

NUM_ATOM_TYPES = 120
NUM_CHIRALITY_TAGS = 3
NUM_BOND_TYPES = 6
NUM_BOND_DIRECTIONS = 3
# single, double, triple, aromatic; the rows above are for self-loops and masking
NUM_INPUT_BOND_TYPES = 4
SELF_LOOP = 4
"""Bond type of the self-loop that every backbone adds to each atom (Hu et al. 2020)."""
MASKED_ATOM = 119
"""Atom type of a masked or unknown atom (Hu et al. 2020, attribute masking)."""


@dataclass(frozen=True)
class MolGraph:
    """One molecular graph.

    Attributes:
        x: (N, 2) int64, atom type (atomic number - 1) and chirality tag of each atom.
        edge_index: (2, E) int64, every bond in both directions, sources in the first row.
        edge_attr: (E, 2) int64, bond type and bond direction of each edge.
    """

    x: Tensor
    edge_index: Tensor
    edge_attr: Tensor

    @property
    def num_nodes(self) -> int:
        """Number of atoms."""
        return int(self.x.shape[0])

    @classmethod
    def from_lists(
        cls,
        x: Sequence[Sequence[int]],
        edge_index: Sequence[Sequence[int]],
        edge_attr: Sequence[Sequence[int]],
    ) -> Self:
        """Build a graph from plain lists and check it.

        Raises:
            InvalidInputError: see `validate`.
        """
        graph = cls(
            _table(x, "x", 2),
            _table(edge_index, "edge_index", None),
            _table(edge_attr, "edge_attr", 2),
        )
        if graph.edge_index.shape[0] != 2:
            raise InvalidInputError(
                f"edge_index: got {graph.edge_index.shape[0]} rows, expected 2 (sources and"
                " targets)"
            )
        return graph.validate()

    def validate(self) -> Self:
        """Return the graph itself if it is a molecule in the vocabulary.

        Raises:
            InvalidInputError: no atom, a feature outside its table, an edge to an atom that does
                not exist, a self-loop (the networks add their own), a repeated edge, or a bond that
                is not given in both directions with the same features.
        """
        nodes, edges = self.num_nodes, int(self.edge_index.shape[1])
        if nodes == 0:
            raise InvalidInputError("x: got no atom, expected at least one")
        if edges != self.edge_attr.shape[0]:
            raise InvalidInputError(
                f"edge_attr: got {self.edge_attr.shape[0]} rows, expected one per edge, {edges}"
            )
        _check_range(self.x[:, 0], NUM_ATOM_TYPES, "x: atom type")
        _check_range(self.x[:, 1], NUM_CHIRALITY_TAGS, "x: chirality tag")
        _check_range(self.edge_index, nodes, "edge_index: atom index")
        _check_range(self.edge_attr[:, 0], NUM_INPUT_BOND_TYPES, "edge_attr: bond type")
        _check_range(self.edge_attr[:, 1], NUM_BOND_DIRECTIONS, "edge_attr: bond direction")
        source, target = self.edge_index
        if bool((source == target).any()):
            raise InvalidInputError(
                "edge_index: got a self-loop, expected none (the network adds its own)"
            )
        if len(torch.unique(source * nodes + target)) != edges:
            raise InvalidInputError("edge_index: got a repeated edge, expected each edge once")
        features = self.edge_attr[:, 0] * NUM_BOND_DIRECTIONS + self.edge_attr[:, 1]
        forward = (source * nodes + target) * 256 + features
        backward = (target * nodes + source) * 256 + features
        if not torch.equal(forward.sort().values, backward.sort().values):
            raise InvalidInputError(
                "edge_index: got a bond in one direction only, expected each bond in both"
                " directions with the same edge_attr"
            )
        return self


def _table(rows: Sequence[Sequence[int]], name: str, width: int | None) -> Tensor:
    """Convert rows of equal length to an int64 matrix; an empty list is (0, width)."""
    if not rows and width is not None:
        return torch.empty((0, width), dtype=torch.int64)
    lengths = {len(row) for row in rows}
    if len(lengths) != 1 or (width is not None and lengths != {width}):
        raise InvalidInputError(
            f"{name}: got rows of {sorted(lengths)} numbers, expected"
            f" {'equal lengths' if width is None else width}"
        )
    return torch.tensor(rows, dtype=torch.int64)


def _check_range(values: Tensor, size: int, name: str) -> None:
    if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < size:
        raise InvalidInputError(
            f"{name}: got values from {int(values.min())} to {int(values.max())}, expected 0 to"
            f" {size - 1}"
        )


@dataclass(frozen=True)
class PackedGraphs:
    """Many graphs in flat tensors, from which batches are taken without a Python loop.

    Attributes:
        x: (sum N, 2) uint8, or (sum N, F) float32 of graphs with numeric node features.
        edge_index: (2, sum E) int32, numbered from 0 within each graph.
        edge_attr: (sum E, 2) uint8, or (sum E, 0) of graphs without edge features.
        node_counts: (G,) int64.
        edge_counts: (G,) int64.
    """

    x: Tensor
    edge_index: Tensor
    edge_attr: Tensor
    node_counts: Tensor
    edge_counts: Tensor

    def __len__(self) -> int:
        return int(self.node_counts.shape[0])

    def select(self, indices: Tensor) -> GraphBatch:
        """Join the graphs at `indices` (G',) to one batch, in that order."""
        nodes, batch = _expand(self.node_counts, indices)
        edges, edge_graph = _expand(self.edge_counts, indices)
        counts = self.node_counts[indices]
        offset = (counts.cumsum(0) - counts)[edge_graph]
        x = self.x[nodes]
        return GraphBatch(
            x if x.is_floating_point() else x.long(),
            self.edge_index[:, edges].long() + offset,
            self.edge_attr[edges].long(),
            batch,
            len(indices),
        )


def _expand(counts: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Find the rows of the chosen segments, where segment i has counts[i] rows.

    Returns:
        Indices of the rows, and for each row the position in `indices` of its segment.
    """
    starts = (counts.cumsum(0) - counts)[indices]
    chosen = counts[indices]
    owner = torch.repeat_interleave(torch.arange(len(indices)), chosen)
    within = torch.arange(len(owner)) - (chosen.cumsum(0) - chosen)[owner]
    return starts[owner] + within, owner


def pack(graphs: Sequence[MolGraph]) -> PackedGraphs:
    """Store graphs in flat tensors.

    Raises:
        InvalidInputError: no graph.
    """
    if not graphs:
        raise InvalidInputError("graphs: got none, expected at least one")
    return PackedGraphs(
        x=torch.cat([graph.x for graph in graphs]).to(torch.uint8),
        edge_index=torch.cat([graph.edge_index for graph in graphs], dim=1).to(torch.int32),
        edge_attr=torch.cat([graph.edge_attr for graph in graphs]).to(torch.uint8),
        node_counts=torch.tensor([graph.num_nodes for graph in graphs]),
        edge_counts=torch.tensor([graph.edge_index.shape[1] for graph in graphs]),
    )


def collate(graphs: Sequence[MolGraph]) -> GraphBatch:
    """Join graphs to one batch, in their order.

    Raises:
        InvalidInputError: no graph.
    """
    if not graphs:
        raise InvalidInputError("graphs: got none, expected at least one")
    sizes = torch.tensor([graph.num_nodes for graph in graphs])
    counts = torch.tensor([graph.edge_index.shape[1] for graph in graphs])
    edge_index = torch.cat([graph.edge_index for graph in graphs], 1)
    return GraphBatch(
        torch.cat([graph.x for graph in graphs]),
        edge_index.add_((sizes.cumsum(0) - sizes).repeat_interleave(counts)),
        torch.cat([graph.edge_attr for graph in graphs]),
        torch.repeat_interleave(sizes),
        len(graphs),
    )
