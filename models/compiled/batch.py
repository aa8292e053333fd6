"""A batch of graphs as compiled kernels want it, and which of its nodes cannot differ.

A node's state after l layers is a function of its surroundings up to l bonds away (colour
refinement, Weisfeiler and Leman 1968). Nodes with equal surroundings are one class, for which a
layer is computed once.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.data.batch import GraphBatch
from models.data.molecule import NUM_BOND_DIRECTIONS, NUM_CHIRALITY_TAGS, SELF_LOOP
from models.ops.jit import Floats, Integers, kernel


@dataclass(frozen=True)
class Classes:
    """The classes of a batch after each number of layers.

    Attributes:
        of_node: (N,) of each level.
        first: (C,) the first node of each class of each level.
    """

    of_node: list[NDArray[np.int64]]
    first: list[NDArray[np.int64]]


@dataclass(frozen=True)
class PreparedBatch:
    """A batch as the kernels want it.

    Attributes:
        atoms: (N, 2).
        graph: (N,) of each node, and begins: (G + 1,) the first node of each graph.
        edges: (N + 1,) where the neighbours of each node begin, and (E,) the neighbours.
        bonds: (E,) what the bond to each neighbour is.
        scale: (N,) 1 / sqrt(degree), the loop counted.
        keys: (N,) equal where atoms are equal before the first layer.
    """

    atoms: Tensor
    graph: NDArray[np.int64]
    begins: NDArray[np.int64]
    edges: tuple[NDArray[np.int64], NDArray[np.int64]]
    bonds: NDArray[np.int64]
    scale: NDArray[np.float32]
    keys: NDArray[np.int64]

    @classmethod
    def from_batch(cls, batch: GraphBatch) -> Self:
        """Sort the edges by target."""
        x, (source, target), attr = (
            batch.x.numpy(),
            batch.edge_index.numpy(),
            batch.edge_attr.numpy(),
        )
        starts, order = rows_of(target, len(x))
        degree = np.bincount(source, minlength=len(x)) + 1
        return cls(
            atoms=batch.x,
            graph=batch.batch.numpy(),
            begins=np.searchsorted(batch.batch.numpy(), np.arange(batch.num_graphs + 1)),
            edges=(starts, source[order]),
            bonds=(attr[:, 0] * NUM_BOND_DIRECTIONS + attr[:, 1])[order],
            scale=(degree**-0.5).astype(np.float32),
            keys=(x[:, 0] * NUM_CHIRALITY_TAGS + x[:, 1]) * (int(degree.max(initial=0)) + 1)
            + degree,
        )

    @property
    def num_graphs(self) -> int:
        """G."""
        return len(self.begins) - 1

    def parts(self, most_nodes: int) -> Iterator[tuple[Self, slice]]:
        """The batch in pieces of whole graphs, of so many nodes where a graph has no more; and
        which nodes they are."""
        first = 0
        while first < self.num_graphs:
            last = max(
                first + 1,
                int(np.searchsorted(self.begins, self.begins[first] + most_nodes, "right")) - 1,
            )
            begin, end = self.begins[first], self.begins[last]
            starts, sources = self.edges
            nodes, entries = slice(begin, end), slice(starts[begin], starts[end])
            part = replace(
                self,
                atoms=self.atoms[nodes],
                graph=self.graph[nodes] - first,
                begins=self.begins[first : last + 1] - begin,
                edges=(starts[begin : end + 1] - starts[begin], sources[entries] - begin),
                bonds=self.bonds[entries],
                scale=self.scale[nodes],
                keys=self.keys[nodes],
            )
            yield part, nodes
            first = last

    def classes(self, levels: int, by_graph: bool) -> Classes:
        """Classes after 0 to `levels` layers; with `by_graph` those of different graphs are
        different from the first layer on."""
        none = np.zeros(len(self.keys) + 1, np.int64)
        classes, first = refine(self.keys, none, none[:0], none[:0])
        found = Classes([classes], [first])
        previous = classes + self.graph * len(first) if by_graph else classes
        for _ in range(levels):
            previous, first = refine(previous, *self.edges, self.bonds)
            found.of_node.append(previous)
            found.first.append(first)
        return found

    def bond_sums(self, first: NDArray[np.int64] | None) -> Tensor:
        """(C, types + directions + 1) weighted counts at the first node of each class, None for
        every node."""
        first = np.arange(len(self.scale)) if first is None else first
        return torch.from_numpy(
            weighted_bonds(
                first, *self.edges, self.bonds, NUM_BOND_DIRECTIONS, SELF_LOOP, self.scale
            )
        )

    def mean(self, values: Tensor, of_node: NDArray[np.int64]) -> Tensor:
        """Mean over the nodes of each graph, whose rows `of_node` (N,) names: (S, C, w) -> (S, G,
        w)."""
        share = np.reciprocal(np.maximum(np.diff(self.begins), 1).astype(np.float32))
        return torch.from_numpy(graph_sums(values.numpy(), of_node, share[self.graph], self.begins))


@kernel
def rows_of(index: Integers, size: int) -> tuple[Integers, Integers]:
    """Where the entries of each row begin, (size + 1,), and the order that sorts them by row, (E,),
    stable."""
    starts = np.zeros(size + 1, np.int64)
    for row in index:
        starts[row + 1] += 1
    for row in range(size):
        starts[row + 1] += starts[row]
    place = starts[:-1].copy()
    order = np.empty(len(index), np.int64)
    for entry, row in enumerate(index):
        order[place[row]] = entry
        place[row] += 1
    return starts, order


@kernel
def _mix(key: np.uint64) -> np.uint64:
    """A bijection of 64 bits that scatters close keys (the finaliser of splitmix64)."""
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))


@kernel
def refine(
    previous: Integers, starts: Integers, sources: Integers, bonds: Integers
) -> tuple[Integers, Integers]:
    """One round of colour refinement: two nodes are of one class if they were of one class and
    their neighbours, with their bonds, were.

    Classes are compared as they are, a hash only finds where to look: no two different nodes are
    ever taken for the same.

    Args:
        previous: (N,) class of each node before.
        starts, sources: neighbours of each node, (N + 1,) and (E,).
        bonds: (E,) below 64, what the bond is.

    Returns:
        (N,) class of each node, and (C,) the first node of each class.
    """
    nodes = len(previous)
    codes = np.empty(len(sources), np.int64)  # of each node's neighbours, sorted
    size = 16
    while size < 2 * nodes:
        size *= 2
    table = np.full(size, -1, np.int64)
    classes, first = np.empty(nodes, np.int64), np.empty(nodes, np.int64)
    count = 0
    for node in range(nodes):
        begin, end = starts[node], starts[node + 1]
        key = _mix(np.uint64(previous[node]) + np.uint64(0x9E3779B97F4A7C15))
        for entry in range(begin, end):
            code = previous[sources[entry]] * 64 + bonds[entry]
            key += _mix(np.uint64(code))
            place = entry
            if end - begin <= 16:
                while place > begin and codes[place - 1] > code:
                    codes[place] = codes[place - 1]
                    place -= 1
            codes[place] = code
        if end - begin > 16:
            codes[begin:end].sort()
        slot = np.int64(_mix(key) & np.uint64(size - 1))
        while True:
            known = table[slot]
            if known < 0:
                table[slot] = classes[node] = count
                first[count] = node
                count += 1
                break
            other = first[known]
            same = (
                previous[other] == previous[node]
                and starts[other + 1] - starts[other] == end - begin
            )
            if same:
                shift = starts[other] - begin
                for entry in range(begin, end):
                    if codes[entry + shift] != codes[entry]:
                        same = False
                        break
            if same:
                classes[node] = known
                break
            slot = (slot + 1) & (size - 1)
    return classes, first[:count].copy()


@kernel
def weighted_bonds(
    first: Integers,
    starts: Integers,
    sources: Integers,
    bonds: Integers,
    directions: int,
    loop: int,
    scale: Floats,
) -> Floats:
    """What an aggregation adds for the bonds and the bias: weighted counts of bond types and
    directions, and the sum of the weights.

    Args:
        first: (C,) a node of each class.
        starts, sources, bonds: of each node; a bond is type * directions + direction.
        directions: how many there are.
        loop: the type of a self-loop, the largest.
        scale: (N,) an edge weighs scale[source] * scale[target].

    Returns:
        (C, types + directions + 1).
    """
    sums = np.zeros((len(first), loop + 1 + directions + 1), np.float32)
    for row in range(len(first)):
        node = first[row]
        total = scale[node]
        sums[row, loop] += scale[node]
        sums[row, loop + 1] += scale[node]
        for entry in range(starts[node], starts[node + 1]):
            weight = scale[sources[entry]]
            kind, direction = divmod(bonds[entry], directions)
            sums[row, kind] += weight
            sums[row, loop + 1 + direction] += weight
            total += weight
        sums[row, -1] = total
        for column in range(sums.shape[1]):
            sums[row, column] *= scale[node]
    return sums


@kernel
def graph_sums(
    values: Floats, classes: Integers, weights: Floats, graph_starts: Integers
) -> Floats:
    """Weighted sums over the nodes of each graph: values (S, C, w), classes and weights (N,),
    graph_starts (G + 1,) -> (S, G, w)."""
    streams, _, width = values.shape
    out = np.zeros((streams, len(graph_starts) - 1, width), np.float32)
    for stream in range(streams):
        for graph in range(len(graph_starts) - 1):
            result = out[stream, graph]
            for node in range(graph_starts[graph], graph_starts[graph + 1]):
                row, weight = values[stream, classes[node]], weights[node]
                for column in range(width):
                    result[column] += weight * row[column]
    return out


@kernel
def readout_weights(
    starts: Integers, sources: Integers, scale: Floats, graph_starts: Integers
) -> Floats:
    """(N,) how much each node's message counts in the mean over its graph: the sum of scale over
    those that receive it, by the size of the graph."""
    weights = np.zeros(len(scale), np.float32)
    for graph in range(len(graph_starts) - 1):
        begin, end = graph_starts[graph], graph_starts[graph + 1]
        for node in range(begin, end):
            weights[node] += scale[node]
            for entry in range(starts[node], starts[node + 1]):
                weights[sources[entry]] += scale[node]
        for node in range(begin, end):
            weights[node] /= end - begin
    return weights
