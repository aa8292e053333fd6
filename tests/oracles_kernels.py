"""Random graphs in the arrays of the compiled kernels, with neighbours as plain lists."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.compiled.transport import SIMD_WIDTH

Array = NDArray[Any]
RAGGED_SIZES = (
    (1,),
    (0, 3, 0),
    (1, 1, 1),
    (5, 0, 2, 9),
    (SIMD_WIDTH - 1, SIMD_WIDTH, SIMD_WIDTH + 1),
    (17, 1),
)
"""Nodes of each graph: one, none, isolated ones, and numbers around the width of a register."""


@dataclass(frozen=True, eq=False)
class KernelGraphs:
    """Graphs without loops and repeated edges, in the arrays of the kernels.

    Attributes:
        graph_starts: (G + 1,) first node of each graph.
        starts, sources, bonds: (N + 1,), (E,) and (E,) the neighbours of each node and the bond to
            each.
        scale: (N,) positive small integers.
        classes: (N,) a class of each node, below `num_classes`.
        representatives: (num_classes,) any node for each class.
    """

    graph_starts: Array
    starts: Array
    sources: Array
    bonds: Array
    scale: Array
    classes: Array
    num_classes: int
    representatives: Array

    @property
    def num_graphs(self) -> int:
        return len(self.graph_starts) - 1

    @property
    def num_nodes(self) -> int:
        return len(self.scale)

    def neighbours(self, node: int) -> list[int]:
        return self.sources[self.starts[node] : self.starts[node + 1]].tolist()

    def bonds_of(self, node: int) -> list[int]:
        return self.bonds[self.starts[node] : self.starts[node + 1]].tolist()

    def nodes(self, graph: int) -> range:
        return range(self.graph_starts[graph], self.graph_starts[graph + 1])

    def mask(self, graph: int) -> NDArray[np.bool_]:
        """Return the support of a graph, (n, n): True from a node to itself and to its
        neighbours.
        """
        nodes = self.nodes(graph)
        mask = np.eye(len(nodes), dtype=bool)
        for node in nodes:
            for source in self.neighbours(node):
                mask[node - nodes.start, source - nodes.start] = True
        return mask


def random_graphs(
    sizes: tuple[int, ...], seed: int, degree: float = 2.5, symmetric: bool = False
) -> KernelGraphs:
    """Draw graphs of these sizes, with about `degree` neighbours a node and some isolated nodes."""
    rng = np.random.default_rng(seed)
    graph_starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    nodes = int(graph_starts[-1])
    adjacency = np.zeros((nodes, nodes), bool)
    for begin, size in zip(graph_starts, sizes, strict=False):
        block = rng.random((size, size)) < degree / max(size - 1, 1)
        adjacency[begin : begin + size, begin : begin + size] = block & ~np.eye(size, dtype=bool)
    if symmetric:
        adjacency |= adjacency.T
    sources = [rng.permutation(np.flatnonzero(row)) for row in adjacency]
    num_classes = max(1, nodes - nodes // 3)
    return KernelGraphs(
        graph_starts=graph_starts,
        starts=np.concatenate([[0], np.cumsum([len(row) for row in sources])]).astype(np.int64),
        sources=np.concatenate([np.empty(0), *sources]).astype(np.int64),
        bonds=rng.integers(0, 12, sum(map(len, sources))),
        scale=rng.integers(1, 4, nodes).astype(np.float32),
        classes=rng.integers(0, num_classes, nodes),
        num_classes=num_classes,
        representatives=rng.integers(0, max(nodes, 1), num_classes if nodes else 0),
    )


def small_halves(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """Draw multiples of a half from -4 to 4.

    Float32 sums and products of these are exact in any order, so that a test may ask for equality
    on every processor.
    """
    return (rng.integers(-8, 9, shape) / 2).astype(np.float32)


def graph_sizes() -> st.SearchStrategy[tuple[int, ...]]:
    """Draw the sizes of up to five graphs with hypothesis."""
    return st.lists(st.integers(0, 11), max_size=5).map(tuple)


def gathered(graphs: KernelGraphs, values: Array, node: int) -> Array:
    """Sum in float64 the rows of a node and its neighbours: values (C, w) -> (w,)."""
    rows = [node, *graphs.neighbours(node)]
    return np.sum([values[graphs.classes[row]].astype(np.float64) for row in rows], axis=0)


def cases(*, streams: tuple[int, ...] = (1, 3)) -> Iterator[tuple[KernelGraphs, int, Any]]:
    """Yield every ragged batch with every number of streams, and a generator for its values."""
    for seed, sizes in enumerate(RAGGED_SIZES):
        for count in streams:
            yield random_graphs(sizes, seed), count, np.random.default_rng(100 + seed)
