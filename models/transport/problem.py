"""Transport problems on graphs: where mass may move, the parameters of Sinkhorn, and the result."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from models.errors import InvalidInputError
from models.ops.segment import segment_count
from models.ops.sparse import Pattern

Solver = Literal["sinkhorn", "exact"]


@dataclass(frozen=True, eq=False)
class Support:
    """The entries on which a transport plan may be nonzero: every node to itself and along the
    edges of its graph.

    Build it with `from_graph`, once per batch.

    Attributes:
        rows: (E,) source node of each entry, in H; entries are sorted by (row, column), none twice.
        cols: (E,) target node of each entry, in H'.
        graph_of_node: (N,) graph of each node. H and H' have the same nodes.
        num_graphs: number of graphs G.
    """

    rows: Tensor
    cols: Tensor
    graph_of_node: Tensor
    num_graphs: int

    @classmethod
    def from_graph(
        cls, edge_index: Tensor, batch: Tensor, num_graphs: int, order: int | None = 1
    ) -> "Support":
        """Build the support of a batch of graphs: its edges, each once, and a loop at every node.

        Args:
            edge_index: (2, E') int64, taken as directed; repeated edges count once.
            batch: (N,) int64, graph of each node.
            num_graphs: number of graphs G.
            order: most edges along which mass moves. 1 is the published support, 0 leaves only the
                loops, None allows any two nodes of a graph.

        Raises:
            InvalidInputError: wrong shape or dtype, an index out of range, an edge between two
                graphs, or a negative order.
        """
        _check_graph(edge_index, batch, num_graphs)
        if order is not None and order < 0:
            raise InvalidInputError(
                f"got order {order}, expected at least 0, or None for any two nodes of a graph"
            )
        num_nodes = len(batch)
        loops = torch.arange(num_nodes, device=batch.device)
        if order is None:
            pairs = (batch[:, None] == batch).nonzero().T
        else:
            one_step = (
                torch.cat([loops.expand(2, -1), edge_index], dim=1)
                if order
                else loops.expand(2, -1)
            )
            pairs = _distinct(one_step, num_nodes)
            for _ in range(order - 1):
                pairs = _distinct(
                    torch.cat([pairs, _joined(pairs, edge_index, num_nodes)], dim=1), num_nodes
                )
        return cls(pairs[0], pairs[1], batch, num_graphs)

    def restrict(self, keep: Tensor) -> tuple["Support", Tensor, Tensor]:
        """Restrict the support to some of its graphs, without changing the order of entries and
        nodes.

        Args:
            keep: (G,) bool, the graphs to keep.

        Returns:
            The support of these graphs, and masks of the entries (E,) and of the nodes (N,) that it
            keeps.
        """
        nodes, entries = keep[self.graph_of_node], keep[self.graph_of_entry]
        # new index of every node and graph that is kept
        node, graph = nodes.cumsum(0) - 1, keep.cumsum(0) - 1
        restricted = Support(
            node[self.rows[entries]],
            node[self.cols[entries]],
            graph[self.graph_of_node[nodes]],
            int(keep.sum()),
        )
        return restricted, entries, nodes

    @property
    def num_nodes(self) -> int:
        """Number of nodes N of all graphs together."""
        return len(self.graph_of_node)

    @cached_property
    def pattern(self) -> Pattern:
        """The support as the positions of a sparse N x N matrix."""
        return Pattern(self.rows, self.cols, self.num_nodes)

    @cached_property
    def graph_of_entry(self) -> Tensor:
        """(E,) graph of each entry."""
        return self.graph_of_node[self.rows]

    @cached_property
    def graph_sizes(self) -> Tensor:
        """(G,) int64 number of nodes of each graph, but at least 1, to divide by for empty graphs
        too.
        """
        return segment_count(self.graph_of_node, self.num_graphs).clamp(min=1)


@dataclass(frozen=True)
class SinkhornParams:
    """Regularisation and stopping rule of Sinkhorn. The defaults are the paper's.

    Attributes:
        epsilon: strength of the entropic term, in units of cost.
        tolerance: a graph has converged when the sum over its nodes of |f - f_previous| is below
            this, f in units of cost. In one sweep f moves by epsilon times the log of the relative
            error of a row sum, so the marginals are met to about tolerance / epsilon: lower both
            together.
        max_iters: most sweeps for a graph; a sweep updates f once and g once.
    """

    epsilon: float = 0.1
    tolerance: float = 0.1
    max_iters: int = 100

    def __post_init__(self) -> None:
        for name in ("epsilon", "tolerance"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InvalidInputError(f"got {name} {value}, expected a finite number above 0")
        if self.max_iters < 1:
            raise InvalidInputError(f"got max_iters {self.max_iters}, expected at least 1")


@dataclass(frozen=True, eq=False)
class SinkhornResult:
    """Solution of G transport problems, for every index of the cost's trailing dimensions *B.

    Attributes:
        cost: (G, *B) transport cost <T, C>, in units of C.
        regularized_cost: (G, *B) <T, C> + epsilon * sum T (log T - log a_i b_j); equals `cost` for
            the exact solver.
        plan: (E, *B) T on the entries of the support, no gradient.
        potentials: f and g, (N, *B) each, in units of C, with T_ij = exp((f_i + g_j - C_ij) /
            epsilon); None for the exact solver.
        num_iters: (G, *B) int64, number of sweeps; 0 for the exact solver.
        converged: (G, *B) bool, True where the tolerance was met within max_iters.
    """

    cost: Tensor
    regularized_cost: Tensor
    plan: Tensor
    potentials: tuple[Tensor, Tensor] | None
    num_iters: Tensor
    converged: Tensor


def _joined(pairs: Tensor, edge_index: Tensor, num_nodes: int) -> Tensor:
    """Extend pairs (i, j) by edges (j, k) to all pairs (i, k): (2, P), (2, E) -> (2, P')."""
    by_source = edge_index[:, edge_index[0].argsort()]
    count = segment_count(edge_index[0], num_nodes)
    fan = count[pairs[1]]
    within = torch.arange(int(fan.sum()), device=pairs.device) - (
        fan.cumsum(0) - fan
    ).repeat_interleave(fan)
    first = (count.cumsum(0) - count)[pairs[1]].repeat_interleave(fan)
    return torch.stack([pairs[0].repeat_interleave(fan), by_source[1, first + within]])


def _distinct(pairs: Tensor, num_nodes: int) -> Tensor:
    """Sort pairs by row and column and drop repeated ones: (2, P) -> (2, P')."""
    base = max(num_nodes, 1)
    keys = torch.unique(pairs[0] * base + pairs[1])
    return torch.stack([keys // base, keys % base])


def _check_graph(edge_index: Tensor, batch: Tensor, num_graphs: int) -> None:
    if edge_index.dim() != 2 or edge_index.shape[0] != 2 or edge_index.dtype != torch.int64:
        raise InvalidInputError(
            f"got edge_index of shape {tuple(edge_index.shape)}, {edge_index.dtype}, expected (2,"
            " E), torch.int64"
        )
    if batch.dim() != 1 or batch.dtype != torch.int64:
        raise InvalidInputError(
            f"got batch of shape {tuple(batch.shape)}, {batch.dtype}, expected (N,), torch.int64"
        )
    for name, values, size in (
        ("batch", batch, num_graphs),
        ("edge_index", edge_index, len(batch)),
    ):
        if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < size:
            raise InvalidInputError(
                f"got {name} from {int(values.min())} to {int(values.max())}, expected 0 to"
                f" {size - 1}"
            )
    crossing = int((batch[edge_index[0]] != batch[edge_index[1]]).sum())
    if crossing:
        raise InvalidInputError(
            f"got {crossing} edges between two graphs, expected every edge inside one graph"
        )


def flatten_trailing(cost: Tensor, support: Support) -> Tensor:
    """Check a cost (E, *B) and flatten it to (E, prod B).

    Raises:
        InvalidInputError: not one row per entry of the support, another dtype than float32 and
            float64, or a value that is not finite.
    """
    entries = len(support.rows)
    if cost.dim() == 0 or cost.shape[0] != entries:
        raise InvalidInputError(
            f"got cost of shape {tuple(cost.shape)}, expected ({entries}, ...), one row per entry"
            " of the support"
        )
    if cost.dtype not in (torch.float32, torch.float64):
        raise InvalidInputError(
            f"got cost of {cost.dtype}, expected torch.float32 or torch.float64"
        )
    if not cost.isfinite().all():
        raise InvalidInputError(
            f"got cost with {int((~cost.isfinite()).sum())} non-finite values, expected finite"
            " numbers"
        )
    return cost.reshape(entries, math.prod(cost.shape[1:]))


def restore_trailing(flat: Tensor, trailing: torch.Size) -> Tensor:
    """Undo `flatten_trailing`: (n, T) -> (n, *trailing)."""
    return flat.view(flat.shape[0], *trailing)
