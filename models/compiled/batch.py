"""Batches of molecules in the layout of the compiled kernels, and their classes of equivalent
nodes.

A node's state after l layers is a function of its surroundings up to l bonds away (colour
refinement, Weisfeiler and Leman 1968). Nodes with equal surroundings form one class, and a layer is
computed once per class.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
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
    """Classes of equivalent nodes of a batch, before the first layer and after each one.

    Attributes:
        of_node: per number of layers, (N,) the class of each node.
        representatives: per number of layers, (C,) the first node of each class.
    """

    of_node: list[NDArray[np.int64]]
    representatives: list[NDArray[np.int64]]


@dataclass(frozen=True)
class CompiledBatch:
    """A batch of molecules as NumPy arrays, its edges sorted by target.

    Attributes:
        atoms: (N, 2) atom type and chirality tag.
        graph: (N,) graph of each node.
        graph_starts: (G + 1,) first node of each graph.
        edges: (N + 1,) where the neighbours of each node start, and (E,) the neighbours.
        bonds: (E,) type * NUM_BOND_DIRECTIONS + direction of the bond to each neighbour.
        scale: (N,) factor of the messages that a node sends and of those that it receives:
            1 / sqrt(degree) with the self-loop included for a GCN, 1 for a sum.
        keys: (N,) equal for nodes of equal atom type, chirality tag and degree.
    """

    atoms: Tensor
    graph: NDArray[np.int64]
    graph_starts: NDArray[np.int64]
    edges: tuple[NDArray[np.int64], NDArray[np.int64]]
    bonds: NDArray[np.int64]
    scale: NDArray[np.float32]
    keys: NDArray[np.int64]

    @classmethod
    def from_batch(cls, batch: GraphBatch, normalised: bool = True) -> Self:
        """Convert a batch and sort its edges by target.

        Args:
            batch: the molecules.
            normalised: normalise messages by degrees, as a GCN does; else they are summed.
        """
        source, target = batch.edge_index.numpy()
        graph = batch.batch.numpy()
        starts, sources, bonds, scale, keys = sort_edges(
            batch.x.numpy(),
            source,
            target,
            batch.edge_attr.numpy(),
            NUM_CHIRALITY_TAGS,
            NUM_BOND_DIRECTIONS,
        )
        return cls(
            atoms=batch.x,
            graph=graph,
            graph_starts=np.searchsorted(graph, np.arange(batch.num_graphs + 1)),
            edges=(starts, sources),
            bonds=bonds,
            scale=scale if normalised else np.ones_like(scale),
            keys=keys,
        )

    @property
    def num_graphs(self) -> int:
        """Number of graphs G."""
        return len(self.graph_starts) - 1

    def chunks(self, max_nodes: int) -> Iterator[tuple[Self, slice]]:
        """Split the batch into chunks of whole graphs.

        Args:
            max_nodes: most nodes in a chunk; a larger graph is a chunk of its own.

        Yields:
            The chunk, and the slice of this batch's nodes that it holds.
        """
        first = 0
        while first < self.num_graphs:
            last = max(
                first + 1,
                int(
                    np.searchsorted(
                        self.graph_starts, self.graph_starts[first] + max_nodes, "right"
                    )
                )
                - 1,
            )
            begin, end = self.graph_starts[first], self.graph_starts[last]
            starts, sources = self.edges
            nodes, entries = slice(begin, end), slice(starts[begin], starts[end])
            chunk = replace(
                self,
                atoms=self.atoms[nodes],
                graph=self.graph[nodes] - first,
                graph_starts=self.graph_starts[first : last + 1] - begin,
                edges=(starts[begin : end + 1] - starts[begin], sources[entries] - begin),
                bonds=self.bonds[entries],
                scale=self.scale[nodes],
                keys=self.keys[nodes],
            )
            yield chunk, nodes
            first = last

    def classes(self, num_layers: int, by_graph: bool) -> Classes:
        """Find the classes of equivalent nodes after 0 to `num_layers` layers.

        Args:
            num_layers: how far from a node its surroundings count, in bonds.
            by_graph: keep nodes of different graphs in different classes from the first layer on.
        """
        no_edges = np.zeros(len(self.keys) + 1, np.int64)
        classes, representatives = refine(self.keys, no_edges, no_edges[:0], no_edges[:0])
        result = Classes([classes], [representatives])
        previous = classes + self.graph * len(representatives) if by_graph else classes
        for _ in range(num_layers):
            previous, representatives = refine(previous, *self.edges, self.bonds)
            result.of_node.append(previous)
            result.representatives.append(representatives)
        return result

    @cached_property
    def bonds_by_node(self) -> Tensor:
        """The `bond_sums` of all nodes, (N, types + directions + 1)."""
        return self.bond_sums(np.arange(len(self.scale)))

    def bond_sums(self, representatives: NDArray[np.int64]) -> Tensor:
        """Count the bonds of every representative (C,), weighted as in an aggregation.

        Returns:
            (C, types + directions + 1), see `weighted_bonds`.
        """
        return torch.from_numpy(
            weighted_bonds(
                representatives, *self.edges, self.bonds, NUM_BOND_DIRECTIONS, SELF_LOOP, self.scale
            )
        )

    def mean(self, values: Tensor, of_node: NDArray[np.int64]) -> Tensor:
        """Average rows over the nodes of each graph.

        Args:
            values: (S, C, w).
            of_node: (N,) row of each node.

        Returns:
            (S, G, w); 0 for a graph without nodes.
        """
        share = np.reciprocal(np.maximum(np.diff(self.graph_starts), 1).astype(np.float32))
        return torch.from_numpy(
            graph_sums(values.numpy(), of_node, share[self.graph], self.graph_starts)
        )


class WholeBatch:
    """Classes of the nodes of a whole batch and their bonds, each computed when first needed.

    Streams that use one adapter, or none, share them.
    """

    def __init__(self, graphs: CompiledBatch, num_layers: int) -> None:
        self._graphs, self._num_layers = graphs, num_layers

    @cached_property
    def classes(self) -> Classes:
        """The classes of the batch after 0 to `num_layers` layers."""
        return self._graphs.classes(self._num_layers, by_graph=False)

    @cached_property
    def bond_sums(self) -> list[Tensor]:
        """The bonds of the representatives after 1 to `num_layers` layers."""
        return [self._graphs.bond_sums(nodes) for nodes in self.classes.representatives[1:]]


@kernel
def group_by_row(index: Integers, size: int) -> tuple[Integers, Integers]:
    """Sort entries by row, stably.

    Args:
        index: (E,) row of each entry.
        size: number of rows.

    Returns:
        (size + 1,) where each row starts in the sorted order, and (E,) the order.
    """
    starts = np.zeros(size + 1, np.int64)
    for row in index:
        starts[row + 1] += 1
    for row in range(size):
        starts[row + 1] += starts[row]
    next_entry = starts[:-1].copy()
    order = np.empty(len(index), np.int64)
    for entry, row in enumerate(index):
        order[next_entry[row]] = entry
        next_entry[row] += 1
    return starts, order


@kernel
def sort_edges(
    atoms: Integers,
    source: Integers,
    target: Integers,
    attributes: Integers,
    tags: int,
    directions: int,
) -> tuple[Integers, Integers, Integers, Floats, Integers]:
    """Sort the edges of a batch by target: see `CompiledBatch`.

    Args:
        atoms: (N, 2) atom type and chirality tag.
        source, target: (E,) the ends of the edges.
        attributes: (E, 2) bond type and direction.
        tags, directions: numbers of chirality tags and of bond directions.

    Returns:
        (N + 1,) where the neighbours of each node start, (E,) the neighbours and (E,) the bonds to
        them; (N,) `scale` and (N,) `keys`.
    """
    starts, order = group_by_row(target, len(atoms))
    degree = np.ones(len(atoms), np.int64)
    for node in source:
        degree[node] += 1
    most = degree.max() + 1 if len(atoms) else 1
    sources, bonds = np.empty_like(source), np.empty_like(source)
    for position, edge in enumerate(order):
        sources[position] = source[edge]
        bonds[position] = attributes[edge, 0] * directions + attributes[edge, 1]
    scale, keys = np.empty(len(atoms), np.float32), np.empty(len(atoms), np.int64)
    for node in range(len(atoms)):
        scale[node] = np.float32(degree[node] ** -0.5)
        keys[node] = (atoms[node, 0] * tags + atoms[node, 1]) * most + degree[node]
    return starts, sources, bonds, scale, keys


@kernel
def _mix(key: np.uint64) -> np.uint64:
    """Scatter close keys by a bijection on 64 bits: the finaliser of splitmix64 (Steele, Lea and
    Flood 2014).
    """
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))


@kernel
def refine(
    previous: Integers, starts: Integers, sources: Integers, bonds: Integers
) -> tuple[Integers, Integers]:
    """Run one round of colour refinement.

    Two nodes stay in one class if they were in one and the multisets of (class, bond) of their
    neighbours are equal. The hash only finds candidates, which are then compared in full: nodes
    that differ never share a class.

    Args:
        previous: (N,) class of each node.
        starts, sources: (N + 1,) and (E,) the neighbours of each node.
        bonds: (E,) code of the bond to each neighbour, below 64.

    Returns:
        (N,) new class of each node, numbered in order of appearance, and (C,) the first node of
        each class.
    """
    nodes = len(previous)
    codes = np.empty(len(sources), np.int64)  # (class, bond) of every neighbour, sorted by node
    size = 16
    while size < 2 * nodes:
        size *= 2
    table = np.full(size, -1, np.int64)
    classes, representatives = np.empty(nodes, np.int64), np.empty(nodes, np.int64)
    count = 0
    for node in range(nodes):
        begin, end = starts[node], starts[node + 1]
        key = _mix(np.uint64(previous[node]) + np.uint64(0x9E3779B97F4A7C15))
        for entry in range(begin, end):
            code = previous[sources[entry]] * 64 + bonds[entry]
            key += _mix(np.uint64(code))
            position = entry
            if end - begin <= 16:
                while position > begin and codes[position - 1] > code:
                    codes[position] = codes[position - 1]
                    position -= 1
            codes[position] = code
        if end - begin > 16:
            codes[begin:end].sort()
        slot = np.int64(_mix(key) & np.uint64(size - 1))
        while True:
            candidate = table[slot]
            if candidate < 0:
                table[slot] = classes[node] = count
                representatives[count] = node
                count += 1
                break
            other = representatives[candidate]
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
                classes[node] = candidate
                break
            slot = (slot + 1) & (size - 1)
    return classes, representatives[:count].copy()


@kernel
def weighted_bonds(
    representatives: Integers,
    starts: Integers,
    sources: Integers,
    bonds: Integers,
    directions: int,
    loop: int,
    scale: Floats,
) -> Floats:
    """Sum the edge weights of every representative by bond type and by bond direction.

    A product of the result with the bond embeddings and the bias is what an aggregation adds for
    them.

    Args:
        representatives: (C,) one node of each class.
        starts, sources, bonds: neighbours of each node; a bond is type * directions + direction.
        directions: number of bond directions.
        loop: type of a self-loop, the largest type.
        scale: (N,); an edge weighs scale[source] * scale[target].

    Returns:
        (C, types + directions + 1): weights by type, weights by direction, total weight.
    """
    sums = np.zeros((len(representatives), loop + 1 + directions + 1), np.float32)
    for row in range(len(representatives)):
        node = representatives[row]
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
    """Sum weighted rows over the nodes of each graph.

    Args:
        values: (S, C, w).
        classes, weights: (N,) row of `values` and weight of each node.
        graph_starts: (G + 1,).

    Returns:
        (S, G, w).
    """
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
    """Compute the weight of every node's row in the mean over its graph of the aggregated messages.

    The weight is the sum of `scale` over the nodes that receive the message, divided by the number
    of nodes of the graph. With it the mean is taken before the last layer's matrix product.

    Args:
        starts, sources: neighbours of each node.
        scale: (N,).
        graph_starts: (G + 1,).

    Returns:
        (N,).
    """
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
