"""Node features of graphs that have none, from their structure alone; and the ego graph of a node
of a large graph, found by a random walk.

Both are functions of the graph: a user who computes them gets the numbers that a model was trained
on, in whatever order the nodes of a whole graph are.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from models.data.feature_graph import FeatureGraph
from models.errors import InvalidInputError

POSITIONS = 32
"""Number of columns of the positional encoding."""
DEGREES = 16
"""Number of columns of the degree."""
STRUCTURAL_FEATURES = POSITIONS + DEGREES + 1
"""Number of features of a node (`structural_features`)."""
_EQUAL = 1e-6
"""Eigenvalues that differ by less are one: double precision errs by some 1e-15, and a value that
occurs by chance so close to another one is not told apart by 257 nodes."""
_DECIMALS = 4
_DEGREE_BOUNDS = 2.0 ** (np.arange(DEGREES) / 2)


@dataclass(frozen=True)
class Walk:
    """A random walk with restart from a node (Qiu et al. 2020, GCC, arXiv:2006.09963).

    Attributes:
        hops: number of steps.
        restart: probability of going back to the node after a step.
        seed: of the walks; with the number of a node it determines the node's walk.
    """

    hops: int = 256
    restart: float = 0.8
    seed: int = 0


def structural_features(edge_index: Tensor, num_nodes: int, centre: int | None = None) -> Tensor:
    """Compute features of the nodes of an undirected graph from its structure.

    - 32 columns: the eigenvectors of D^-1/2 A D^-1/2 with the largest eigenvalues, in descending
      order, each row divided by its norm, as in GCC (Qiu et al. 2020, arXiv:2006.09963); 0 where a
      graph has fewer nodes. An eigenvector has no sign, and of an eigenvalue that occurs m times
      none is singled out: a node's entry is the length of its projection on the eigenspace,
      divided by sqrt(m). For m = 1 that is the absolute value. Entries are rounded to four
      decimals, so that graphs that differ in the order of their nodes have the same numbers.
    - 16 columns: 1 in column floor(2 log2(degree)), or in the last one above degree 181; all 0
      without neighbours.
    - 1 column: 1 at `centre`; without one, at the nodes of the largest degree.

    Args:
        edge_index: (2, E), both directions of every edge, without loops and repetitions.
        num_nodes: number of nodes N.
        centre: the node whose ego graph this is, or None for a graph as a whole.

    Returns:
        (N, 49) float32.

    Raises:
        InvalidInputError: there is no node, or `centre` is none of them.
    """
    if num_nodes < 1 or not (centre is None or 0 <= centre < num_nodes):
        got = f"got {num_nodes} nodes and centre {centre}"
        raise InvalidInputError(f"{got}, expected at least one node, and a centre among them")
    adjacency = _adjacency(edge_index, num_nodes).toarray()
    degrees = adjacency.sum(1)
    marked = degrees == degrees.max() if centre is None else np.arange(num_nodes) == centre
    columns = _positions(adjacency, degrees), _one_hot(degrees), marked[:, None]
    return torch.from_numpy(np.concatenate(columns, axis=1).astype(np.float32))


def whole_graph(edge_index: Tensor, num_nodes: int) -> FeatureGraph:
    """Return a graph with its structural features. Raises InvalidInputError: an edge is no pair of
    two nodes, is repeated, or is given in one direction only."""
    graph = FeatureGraph(torch.zeros(num_nodes, 1), edge_index).validate()
    _check_directions(graph)
    return FeatureGraph(structural_features(edge_index, num_nodes), edge_index)


class EgoGraphs:
    """The ego graphs of the nodes of a large graph.

    Args:
        edge_index: (2, E), both directions of every edge, without loops and repetitions.
        num_nodes: number of nodes.
        walk: how their surroundings are found.

    Raises:
        InvalidInputError: as in `whole_graph`.
    """

    def __init__(self, edge_index: Tensor, num_nodes: int, walk: Walk = Walk()) -> None:
        graph = FeatureGraph(torch.zeros(num_nodes, 1), edge_index).validate()
        _check_directions(graph)
        self._adjacency, self._walk = _adjacency(edge_index, num_nodes), walk

    def __getitem__(self, node: int) -> FeatureGraph:
        """Return the ego graph of a node with its structural features.

        Its nodes are those that the walk visits, the node itself first and the others in ascending
        order; its edges are all edges between them. The walk draws from numpy's default generator,
        seeded by (seed, node).
        """
        generator = np.random.default_rng((self._walk.seed, node))
        return self.drawn(node, generator)

    def drawn(self, node: int, generator: np.random.Generator) -> FeatureGraph:
        """Return an ego graph of a node whose walk draws from the generator."""
        visited = self._visited(node, generator)
        nodes = np.concatenate([[node], visited[visited != node]])
        edges = np.stack(self._adjacency[nodes][:, nodes].nonzero()).astype(np.int64)
        edge_index = torch.from_numpy(edges)
        return FeatureGraph(structural_features(edge_index, len(nodes), 0), edge_index)

    def _visited(self, node: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """The nodes of a walk in ascending order; the node itself may be missing."""
        starts, neighbours = self._adjacency.indptr, self._adjacency.indices
        restarts = generator.random(self._walk.hops) < self._walk.restart
        draws = generator.random(self._walk.hops)
        visited, current = [], node
        for restart, draw in zip(restarts.tolist(), draws.tolist(), strict=True):
            first, end = starts[current], starts[current + 1]
            if first == end:  # a node without neighbours
                break
            current = int(neighbours[first + int(draw * (end - first))])
            visited.append(current)
            current = node if restart else current
        return np.unique(np.array(visited, dtype=np.int64))


def _adjacency(edge_index: Tensor, num_nodes: int) -> csr_array:
    """The adjacency matrix (N, N), the neighbours of every node in ascending order."""
    source, target = edge_index.numpy()
    ones = np.ones(len(source))
    matrix = csr_array((ones, (source, target)), shape=(num_nodes, num_nodes))
    matrix.sort_indices()
    return matrix


def _positions(adjacency: NDArray[np.float64], degrees: NDArray[np.float64]) -> NDArray[np.float64]:
    """The positional encoding (N, 32)."""
    scale = 1 / np.sqrt(np.maximum(degrees, 1))
    values, vectors = np.linalg.eigh(scale[:, None] * adjacency * scale)
    values, squares = values[::-1], vectors[:, ::-1] ** 2
    spaces = np.concatenate([[0], np.cumsum(values[:-1] - values[1:] > _EQUAL)])
    starts, counts = np.unique(spaces, return_index=True, return_counts=True)[1:]
    means = np.add.reduceat(squares, starts, axis=1) / counts
    positions = np.sqrt(means[:, spaces[:POSITIONS]])
    norms = np.linalg.norm(positions, axis=1, keepdims=True)
    positions = np.round(positions / np.where(norms > 0, norms, 1), _DECIMALS)
    return np.pad(positions, ((0, 0), (0, POSITIONS - positions.shape[1])))


def _one_hot(degrees: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The degree in half octaves, (N, 16)."""
    columns = np.searchsorted(_DEGREE_BOUNDS, degrees, side="right") - 1
    one_hot: NDArray[np.bool_] = columns[:, None] == np.arange(DEGREES)
    return one_hot


def _check_directions(graph: FeatureGraph) -> None:
    source, target = graph.edge_index
    forth, back = (
        one * graph.num_nodes + other for one, other in ((source, target), (target, source))
    )
    if not torch.equal(forth.sort().values, back.sort().values):
        raise InvalidInputError(
            "edge_index: got an edge in one direction only, expected both of every edge"
        )
