"""Graphs with numeric node features, and batches of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch
from torch import Tensor

from models.data.batch import GraphBatch
from models.data.molecule import PackedGraphs
from models.errors import InvalidInputError


def _no_pairs() -> Tensor:
    return torch.empty((2, 0), dtype=torch.int64)


@dataclass(frozen=True)
class FeatureGraph:
    """A graph with numeric node features.

    Attributes:
        x: (N, F) float32.
        edge_index: (2, E) int64, source row first; an undirected edge is given in both directions.
        pairs: (2, P) int64, the pairs of nodes that a task at level "pair" answers.
    """

    x: Tensor
    edge_index: Tensor
    pairs: Tensor = field(default_factory=_no_pairs)

    @property
    def num_nodes(self) -> int:
        """Number of nodes N."""
        return int(self.x.shape[0])

    @property
    def num_features(self) -> int:
        """Number of features per node F."""
        return int(self.x.shape[1])

    @property
    def num_pairs(self) -> int:
        """Number of pairs P."""
        return int(self.pairs.shape[1])

    @classmethod
    def from_lists(
        cls,
        x: Sequence[Sequence[float]],
        edge_index: Sequence[Sequence[int]],
        pairs: Sequence[Sequence[int]] = (),
    ) -> Self:
        """Build a graph from plain lists.

        Args:
            x: N rows of F features.
            edge_index: 2 rows of E node indices.
            pairs: P pairs of node indices.

        Raises:
            InvalidInputError: rows differ in length, or see `validate`.
        """
        widths = sorted({len(row) for row in x})
        if len(widths) != 1 or widths[0] == 0:
            raise InvalidInputError(
                f"x: got rows of {widths} numbers, expected at least one row, and all of one length"
            )
        if len(edge_index) != 2 or len(edge_index[0]) != len(edge_index[1]):
            raise InvalidInputError(
                f"edge_index: got rows of {[len(row) for row in edge_index]} numbers, expected 2 of"
                " one length"
            )
        if wrong := [pair for pair in pairs if len(pair) != 2][:1]:
            raise InvalidInputError(f"pairs: got one of {len(wrong[0])} nodes, expected two nodes")
        # Through numpy: torch converts nested lists ten times slower.
        return cls(
            torch.from_numpy(np.array(x, dtype=np.float32)),
            torch.from_numpy(np.array(edge_index, dtype=np.int64)),
            torch.from_numpy(np.array(pairs, dtype=np.int64).reshape(-1, 2).T.copy()),
        ).validate()

    def validate(self) -> Self:
        """Return the graph itself if it is valid.

        Raises:
            InvalidInputError: a feature is not finite, an edge or a pair has a node index out of
                range, or there is a self-loop or a repeated edge.
        """
        source, target = self.edge_index
        if not bool(self.x.isfinite().all()):
            raise InvalidInputError("x: got a number that is not finite, expected finite ones")
        for name, nodes in (("edge_index", self.edge_index), ("pairs", self.pairs)):
            if nodes.numel() and not 0 <= int(nodes.min()) <= int(nodes.max()) < self.num_nodes:
                got = f"{int(nodes.min())} to {int(nodes.max())}"
                raise InvalidInputError(
                    f"{name}: got nodes from {got}, expected 0 to {self.num_nodes - 1}"
                )
        if bool((source == target).any()):
            raise InvalidInputError(
                "edge_index: got a self-loop, expected none (the networks that need one add it)"
            )
        if len(torch.unique(source * self.num_nodes + target)) != source.numel():
            raise InvalidInputError("edge_index: got a repeated edge, expected each edge once")
        return self


def pack_features(graphs: Sequence[FeatureGraph]) -> PackedGraphs:
    """Store graphs in flat tensors, from which batches are taken by number. Raises
    InvalidInputError: see `collate_features`."""
    _check_widths(graphs)
    edge_index = torch.cat([graph.edge_index for graph in graphs], dim=1)
    return PackedGraphs(
        x=torch.cat([graph.x for graph in graphs]),
        edge_index=edge_index.to(torch.int32),
        edge_attr=torch.empty((edge_index.shape[1], 0), dtype=torch.uint8),
        node_counts=torch.tensor([graph.num_nodes for graph in graphs]),
        edge_counts=torch.tensor([graph.edge_index.shape[1] for graph in graphs]),
    )


def collate_features(graphs: Sequence[FeatureGraph]) -> GraphBatch:
    """Join graphs into one batch, in their order, with `x` (N, F) float32 and `edge_attr` (E, 0).

    Raises:
        InvalidInputError: there are no graphs, or they differ in the number of features.
    """
    _check_widths(graphs)
    counts = torch.tensor([graph.num_nodes for graph in graphs])
    offsets = (counts.cumsum(0) - counts).tolist()
    edges = [graph.edge_index + offset for graph, offset in zip(graphs, offsets, strict=True)]
    pairs = [graph.pairs + offset for graph, offset in zip(graphs, offsets, strict=True)]
    edge_index = torch.cat(edges, dim=1)
    batch = torch.repeat_interleave(torch.arange(len(graphs)), counts)
    no_attributes = torch.empty((edge_index.shape[1], 0), dtype=torch.int64)
    return GraphBatch(
        torch.cat([graph.x for graph in graphs]),
        edge_index,
        no_attributes,
        batch,
        len(graphs),
        torch.cat(pairs, dim=1) if any(pair.numel() for pair in pairs) else None,
    )


def _check_widths(graphs: Sequence[FeatureGraph]) -> None:
    if len(widths := {graph.num_features for graph in graphs}) != 1:
        raise InvalidInputError(
            f"graphs: got {sorted(widths)} features for each node, expected at least one graph, and"
            " one width"
        )
