"""Message passing as a sparse product.

The messages of all four backbones are (neighbour + edge embedding), weighted and summed. Summed over an atom's edges, the edge embeddings are
(counts of bond types and directions) times (embedding tables): N x 9 times 9 x d, so no E x d tensor is ever made.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.graph import NUM_BOND_DIRECTIONS, NUM_BOND_TYPES, SELF_LOOP, GraphBatch
from models.segment import segment_count, segment_sum

NUM_EDGE_FEATURES = NUM_BOND_TYPES + NUM_BOND_DIRECTIONS


@dataclass(frozen=True)
class Propagation:
    """The edges of a batch with self-loops, sorted by target, as the structure of a sparse matrix and of its transpose.

    Attributes:
        num_nodes: N.
        source, target: (E',) int64 with E' = E + N.
        bond_type, bond_direction: (E',) int64; a loop has type 4 and direction 0 (Hu et al. 2020).
        row_starts: (N+1,) where each target's edges begin.
        by_source: (E',) the order that sorts the edges by source.
        column_starts: (N+1,) where each source's edges begin in that order.
    """

    num_nodes: int
    source: Tensor
    target: Tensor
    bond_type: Tensor
    bond_direction: Tensor
    row_starts: Tensor
    by_source: Tensor
    column_starts: Tensor

    @classmethod
    def from_batch(cls, batch: GraphBatch) -> "Propagation":
        """Add the loops and sort."""
        nodes = batch.num_nodes
        loops = torch.arange(nodes, device=batch.x.device)
        source, target = torch.cat([batch.edge_index, loops.expand(2, -1)], dim=1)
        order = target.argsort(stable=True)
        source, target = source[order], target[order]
        bond_type = torch.cat([batch.edge_attr[:, 0], torch.full_like(loops, SELF_LOOP)])[order]
        bond_direction = torch.cat([batch.edge_attr[:, 1], torch.zeros_like(loops)])[order]
        return cls(
            nodes, source, target, bond_type, bond_direction, _starts(target, nodes), source.argsort(stable=True), _starts(source, nodes)
        )

    def out_degree(self) -> Tensor:
        """(N,) edges that leave each atom, loop included."""
        return segment_count(self.source, self.num_nodes)

    def in_degree(self) -> Tensor:
        """(N,) edges that enter each atom, loop included."""
        return segment_count(self.target, self.num_nodes)

    def edge_feature_sums(self, weights: Tensor) -> Tensor:
        """Weighted counts of bond types and directions at each target: weights (E', *S) -> (N, *S, 9)."""
        trailing = weights.shape[1:]
        out = weights.new_zeros((self.num_nodes * NUM_EDGE_FEATURES, *trailing))
        base = self.target * NUM_EDGE_FEATURES
        out = out.index_add(0, base + self.bond_type, weights).index_add(0, base + NUM_BOND_TYPES + self.bond_direction, weights)
        return out.view(self.num_nodes, NUM_EDGE_FEATURES, *trailing).movedim(1, -1)

    def aggregate(self, weights: Tensor, h: Tensor) -> Tensor:
        """sum_j w_ij h_j over each atom's incoming edges: weights (E',), h (N, *S) -> (N, *S)."""
        product: Tensor = _SparseProduct.apply(weights, h.reshape(self.num_nodes, -1), self)  # type: ignore[no-untyped-call]
        return product.view(h.shape)


def _starts(index: Tensor, size: int) -> Tensor:
    return torch.cat([index.new_zeros(1), segment_count(index, size).cumsum(0)])


class _SparseProduct(torch.autograd.Function):
    """A(weights) @ h with the transpose kept sorted: torch's own backward of a CSR product re-sorts it at every step (2 x slower here)."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, h: Tensor, edges: Propagation) -> Tensor:
        ctx.edges = edges
        ctx.save_for_backward(weights, h if ctx.needs_input_grad[0] else None)
        shape = (edges.num_nodes, edges.num_nodes)
        return torch.sparse_csr_tensor(edges.row_starts, edges.source, weights, shape) @ h

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        edges, (weights, h), grad = ctx.edges, ctx.saved_tensors, grads[0]
        grad_weights = grad_h = None
        if ctx.needs_input_grad[0]:
            grad_weights = (grad[edges.target] * h[edges.source]).sum(-1)
        if ctx.needs_input_grad[1]:
            shape = (edges.num_nodes, edges.num_nodes)
            transposed = torch.sparse_csr_tensor(edges.column_starts, edges.target[edges.by_source], weights[edges.by_source], shape)
            grad_h = transposed @ grad.contiguous()
        return grad_weights, grad_h, None


def mean_readout(h: Tensor, batch: GraphBatch) -> Tensor:
    """Mean over the atoms of each graph: h (N, *S) -> (G, *S)."""
    counts = segment_count(batch.batch, batch.num_graphs).to(h.dtype)
    return segment_sum(h, batch.batch, batch.num_graphs) / counts.view(-1, *[1] * (h.dim() - 1))
