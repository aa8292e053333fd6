"""Generated cases: batches of small graphs with two embeddings of each node."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

# derandomize: a test that passed passes again; too_slow: a busy machine is no reason to fail
quick = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
"""For every property test: few cases, the same in every run."""


@dataclass(frozen=True, eq=False)
class GraphCase:
    """Some graphs as one, each node with embeddings `h` and `h_ref` (N, d). Nodes of one graph need
    not be neighbours in the list."""

    h: Tensor
    h_ref: Tensor
    edge_index: Tensor
    batch: Tensor
    num_graphs: int

    @property
    def graph(self) -> tuple[Tensor, Tensor, int]:
        """Arguments of `Support.from_graph`."""
        return self.edge_index, self.batch, self.num_graphs

    @property
    def args(self) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        """Positional arguments of `twd`."""
        return self.h, self.h_ref, *self.graph

    def nodes(self, graph: int) -> Tensor:
        """Indices of the nodes of one graph."""
        return torch.nonzero(self.batch == graph).flatten()

    def single_graph(self, graph: int) -> "GraphCase":
        """Extract one graph of the batch, its nodes in the same order."""
        nodes = self.nodes(graph)
        new = torch.full((len(self.batch),), -1)
        new[nodes] = torch.arange(len(nodes))
        edges = new[self.edge_index[:, self.batch[self.edge_index[0]] == graph]]
        return GraphCase(
            self.h[nodes], self.h_ref[nodes], edges, torch.zeros(len(nodes), dtype=torch.int64), 1
        )

    def relabel(self, order: Tensor) -> "GraphCase":
        """The same graphs with node `order[i]` at place i."""
        return replace(
            self,
            h=self.h[order],
            h_ref=self.h_ref[order],
            edge_index=order.argsort()[self.edge_index],
            batch=self.batch[order],
        )

    def to(self, dtype: torch.dtype) -> "GraphCase":
        """The same case with embeddings of another dtype."""
        return replace(self, h=self.h.to(dtype), h_ref=self.h_ref.to(dtype))


@st.composite
def graph_batches(
    draw: Any,
    *,
    symmetric: bool = False,
    generic: bool = False,
    max_graphs: int = 4,
    max_nodes: int = 6,
) -> GraphCase:
    """Batches in float64 with single nodes, edgeless graphs, repeated edges, explicit self loops,
    edges in one direction, nodes in any order.

    Args:
        symmetric: give every edge in both directions too.
        generic: normal features only; else also small integers, so zero vectors, equal nodes and
            ties between plans.
    """
    sizes = draw(st.lists(st.integers(1, max_nodes), min_size=1, max_size=max_graphs))
    edges: list[tuple[int, int]] = []
    first = 0
    for size in sizes:
        node = st.integers(first, first + size - 1)
        edges += draw(st.lists(st.tuples(node, node), max_size=2 * size))
        first += size
    if symmetric:
        edges += [(target, source) for source, target in edges]
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = (2, first, 3)
    integers = not generic and draw(st.booleans())
    features = (
        torch.randint(-1, 2, shape, generator=random).double()
        if integers
        else torch.randn(shape, generator=random, dtype=torch.float64)
    )
    edge_index = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T
    case = GraphCase(
        features[0],
        features[1],
        edge_index,
        torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)),
        len(sizes),
    )
    return case.relabel(torch.randperm(first, generator=random)) if draw(st.booleans()) else case
