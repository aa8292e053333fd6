"""Batches of graphs, and the mean readout."""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.errors import InvalidInputError
from models.ops.segment import segment_count, segment_mean


@dataclass(frozen=True)
class GraphBatch:
    """Several graphs as one, without edges between them.

    Attributes:
        x: (N, 2) int64 atom features; (N, F) float32 where a network takes numbers.
        edge_index: (2, E) int64 into the N atoms, sources in the first row.
        edge_attr: (E, 2) int64 bond features; (E, F) float32 where a network takes numbers.
        batch: (N,) int64, graph of each atom, ascending.
        num_graphs: number of graphs G.
        pairs: (2, P) int64 into the N atoms, the pairs of nodes that tasks at level "pair" answer;
            None where no graph has any.
    """

    x: Tensor
    edge_index: Tensor
    edge_attr: Tensor
    batch: Tensor
    num_graphs: int
    pairs: Tensor | None = None

    @property
    def num_nodes(self) -> int:
        """Number of atoms of all graphs together."""
        return int(self.x.shape[0])

    def to(self, device: torch.device | str) -> "GraphBatch":
        """Copy the batch to a device."""
        return GraphBatch(
            self.x.to(device),
            self.edge_index.to(device),
            self.edge_attr.to(device),
            self.batch.to(device),
            self.num_graphs,
            None if self.pairs is None else self.pairs.to(device),
        )


def mean_readout(h: Tensor, batch: GraphBatch) -> Tensor:
    """Average node embeddings over each graph: h (N, *S) -> (G, *S)."""
    return segment_mean(h, batch.batch, batch.num_graphs)


def pair_scores(h: Tensor, batch: GraphBatch) -> Tensor:
    """Multiply the vectors of both nodes of every pair: h (N, D) -> (P, 1).

    Source: the inner product decoder of Kipf and Welling 2016, arXiv:1611.07308.

    Raises:
        InvalidInputError: the batch has no pairs.
    """
    if batch.pairs is None:
        raise InvalidInputError("pairs: got none, expected the pairs of nodes to score")
    first, second = batch.pairs
    return (h[first] * h[second]).sum(-1, keepdim=True)


def split_by_edges(batch: GraphBatch, most: int) -> list[GraphBatch]:
    """Split a batch whose edges are in the order of its graphs into batches of consecutive graphs.

    Every one has at most `most` edges, or is a single graph.
    """
    nodes = segment_count(batch.batch, batch.num_graphs).tolist()
    edges = segment_count(batch.batch[batch.edge_index[0]], batch.num_graphs).tolist()
    batches: list[GraphBatch] = []
    first = node = edge = 0
    while first < batch.num_graphs:
        last, end_node, end_edge = first, node, edge
        while last < batch.num_graphs and (last == first or end_edge + edges[last] - edge <= most):
            end_node, end_edge = end_node + nodes[last], end_edge + edges[last]
            last += 1
        batches.append(
            GraphBatch(
                batch.x[node:end_node],
                batch.edge_index[:, edge:end_edge] - node,
                batch.edge_attr[edge:end_edge],
                batch.batch[node:end_node] - first,
                last - first,
            )
        )
        first, node, edge = last, end_node, end_edge
    return batches
