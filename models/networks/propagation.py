"""Message passing as a sparse matrix product.

The messages of all four backbones are (neighbour + edge embedding), weighted and summed. Summed
over an atom's edges, the edge embeddings are (counts of bond types and directions) times (embedding
tables): N x 9 times 9 x d, so no E x d tensor is made.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.data.batch import GraphBatch
from models.data.molecule import NUM_BOND_DIRECTIONS, NUM_BOND_TYPES, SELF_LOOP
from models.ops.segment import segment_count, segment_sum
from models.ops.sparse import Pattern, spmm

NUM_EDGE_FEATURES = NUM_BOND_TYPES + NUM_BOND_DIRECTIONS


@dataclass(frozen=True, eq=False)
class Propagation:
    """The edges of a batch with self-loops: row i, column j of the pattern is the message from j to
    i.

    Attributes:
        pattern: positions of the E' = E + N edges, sorted by target.
        bond_type, bond_direction: (E',) int64; a loop has type 4 and direction 0 (Hu et al. 2020).
    """

    pattern: Pattern
    bond_type: Tensor
    bond_direction: Tensor

    @classmethod
    def from_batch(cls, batch: GraphBatch) -> "Propagation":
        """Add the self-loops to the edges of a batch and sort them by target."""
        loops = torch.arange(batch.num_nodes, device=batch.x.device)
        source, target = torch.cat([batch.edge_index, loops.expand(2, -1)], dim=1)
        bond_type = torch.cat([batch.edge_attr[:, 0], torch.full_like(loops, SELF_LOOP)])
        bond_direction = torch.cat([batch.edge_attr[:, 1], torch.zeros_like(loops)])
        order = target.argsort(stable=True)
        return cls(
            Pattern(target[order], source[order], batch.num_nodes),
            bond_type[order],
            bond_direction[order],
        )

    @property
    def source(self) -> Tensor:
        """(E',) source atom of each edge."""
        return self.pattern.cols

    @property
    def target(self) -> Tensor:
        """(E',) target atom of each edge."""
        return self.pattern.rows

    @property
    def num_nodes(self) -> int:
        """Number of atoms N."""
        return self.pattern.size

    def out_degree(self) -> Tensor:
        """Count the edges that leave each atom, loop included: (N,)."""
        return segment_count(self.source, self.num_nodes)

    def in_degree(self) -> Tensor:
        """Count the edges that enter each atom, loop included: (N,)."""
        return segment_count(self.target, self.num_nodes)

    def edge_feature_sums(self, weights: Tensor) -> Tensor:
        """Sum edge weights by bond type and bond direction at each target: (E', *S) -> (N, *S,
        9).
        """
        base = self.target * NUM_EDGE_FEATURES
        positions = torch.cat([base + self.bond_type, base + NUM_BOND_TYPES + self.bond_direction])
        sums = segment_sum(
            torch.cat([weights, weights]), positions, self.num_nodes * NUM_EDGE_FEATURES
        )
        return sums.view(self.num_nodes, NUM_EDGE_FEATURES, *weights.shape[1:]).movedim(1, -1)

    def aggregate(self, weights: Tensor, h: Tensor) -> Tensor:
        """Sum w_ij h_j over the edges that enter each atom: weights (E',), h (N, *S) -> (N, *S)."""
        return spmm(weights, h.reshape(self.num_nodes, -1), self.pattern).view(h.shape)
