"""What lies between the matrix products of `models.compiled.model`, as loops that numba compiles
for one core: no chain of tensor operations does it well.

Everything here and in `models.compiled.batch` and `models.compiled.transport` is inference on
float32 and int64 arrays, C-contiguous. S streams, G graphs, N nodes, C classes of nodes
(`models.compiled.batch`), K experts, r the rank of their adapters.
"""

import numpy as np

from models.ops.jit import Floats, Integers, kernel


@kernel
def _gather(
    out: Floats, values: Floats, node: int, classes: Integers, starts: Integers, sources: Integers
) -> None:
    """out = the rows of `values` of a node and of its neighbours, summed."""
    width = out.shape[0]
    row = values[classes[node]]
    for column in range(width):
        out[column] = row[column]
    for entry in range(starts[node], starts[node + 1]):
        row = values[classes[sources[entry]]]
        for column in range(width):
            out[column] += row[column]


@kernel
def aggregate(
    out: Floats,
    values: Floats,
    bonds: Floats,
    first: Integers,
    classes: Integers,
    starts: Integers,
    sources: Integers,
    scale: Floats,
    streams: int,
    experts: int,
    lanes: int,
) -> Floats:
    """Messages of each class, cut in two: what goes on, and what the experts' adapters make of it.

    Args:
        out: (S or 1, C', d) to be filled with what goes on; d may be 0.
        values: (S or 1, C, d + K * r) of the classes before, already times `scale` of their nodes.
        bonds: (C', d + K * r) what the bonds add.
        first: (C',) a node of each class.
        classes: (N,) class of each node before.
        starts, sources: neighbours.
        scale: (N,).
        streams, experts, lanes: S, K and K', the number of experts padded.

    Returns:
        (C', r, S, K') what the adapters see, rectified, with zeros for the experts that are not
        there.
    """
    given, _, both = values.shape
    width = out.shape[2]
    rank = (both - width) // experts
    rectified = np.zeros((len(first), rank, streams, lanes), np.float32)
    work = np.empty(both, np.float32)
    for stream in range(given):
        for row in range(len(first)):
            node = first[row]
            _gather(work, values[stream], node, classes, starts, sources)
            factor = scale[node]
            for column in range(both):
                work[column] = factor * work[column] + bonds[row, column]
            for column in range(width):
                out[stream, row, column] = work[column]
            for expert in range(experts):
                for k in range(rank):
                    rectified[row, k, stream, expert] = max(
                        work[width + expert * rank + k], np.float32(0)
                    )
    for row in range(len(first)):
        for k in range(rank):
            for stream in range(given, streams):
                for lane in range(lanes):
                    rectified[row, k, stream, lane] = rectified[row, k, 0, lane]
    return rectified


@kernel
def project(h: Floats, down: Floats) -> Floats:
    """What each stream's own adapter sees: h (S, C, d) and down (S, r, d) -> (S, C, r). A matrix
    product so narrow is faster by hand."""
    streams, rows, width = h.shape
    rank = down.shape[1]
    out = np.empty((streams, rows, rank), np.float32)
    for stream in range(streams):
        for row in range(rows):
            left = h[stream, row]
            for k in range(rank):
                right, total = down[stream, k], np.float32(0)
                for column in range(width):
                    total += left[column] * right[column]
                out[stream, row, k] = total
    return out


@kernel
def aggregate_own(
    out: Floats,
    values: Floats,
    narrow: Floats,
    bonds: Floats,
    narrow_bonds: Floats,
    up: Floats,
    gain: Floats,
    offset: Floats,
    first: Integers,
    classes: Integers,
    starts: Integers,
    sources: Integers,
    scale: Floats,
) -> None:
    """A whole layer behind its product, for streams with an adapter of their own: messages,
    adapter, BatchNorm, relu.

    Args:
        out: (S, C', d) to be filled, times `scale`.
        values, narrow: (S, C, d) and (S, C, r) of the classes before, times `scale`: what is passed
            on, and what the adapters see of it.
        bonds, narrow_bonds: (C', d) and (S, C', r) what the bonds add to both.
        up: (S, r, d).
        gain, offset: (S, d) of the BatchNorm.
        first, classes, starts, sources, scale: as in `aggregate`.
    """
    streams, rank, width = up.shape
    work, z = np.empty(width, np.float32), np.empty(rank, np.float32)
    for stream in range(streams):
        high, low = gain[stream], offset[stream]
        for row in range(len(first)):
            node = first[row]
            factor, bond, result = scale[node], bonds[row], out[stream, row]
            _gather(work, values[stream], node, classes, starts, sources)
            _gather(z, narrow[stream], node, classes, starts, sources)
            for column in range(width):
                work[column] = factor * work[column] + bond[column]
            for k in range(rank):
                seen = factor * z[k] + narrow_bonds[stream, row, k]
                if seen > 0:
                    taken = up[stream, k]
                    for column in range(width):
                        work[column] -= seen * taken[column]
            for column in range(width):
                result[column] = (
                    max(work[column] * high[column] + low[column], np.float32(0)) * factor
                )


@kernel
def readout_own(
    narrow: Floats,
    narrow_bonds: Floats,
    classes: Integers,
    starts: Integers,
    sources: Integers,
    scale: Floats,
    graph_starts: Integers,
) -> Floats:
    """Mean over each graph of what its nodes' own adapters see, rectified; 0 for a graph without
    nodes.

    Args:
        narrow: (S, C, r) of the classes before, times `scale`.
        narrow_bonds: (S, N, r) what the bonds add.
        classes: (N,) class of each node before.
        starts, sources, scale: as in `aggregate`.
        graph_starts: (G + 1,).

    Returns:
        (S, G, r).
    """
    streams, _, rank = narrow_bonds.shape
    out = np.zeros((streams, len(graph_starts) - 1, rank), np.float32)
    z = np.empty(rank, np.float32)
    for stream in range(streams):
        for graph in range(len(graph_starts) - 1):
            result = out[stream, graph]
            begin, end = graph_starts[graph], graph_starts[graph + 1]
            for node in range(begin, end):
                _gather(z, narrow[stream], node, classes, starts, sources)
                bond = narrow_bonds[stream, node]
                for k in range(rank):
                    result[k] += max(scale[node] * z[k] + bond[k], np.float32(0))
            for k in range(rank):
                result[k] /= np.float32(max(end - begin, 1))
    return out


@kernel
def activate(
    out: Floats,
    values: Floats,
    taken: Floats,
    gain: Floats,
    offset: Floats,
    first: Integers,
    scale: Floats,
) -> None:
    """out = scale * relu(gain (values - taken) + offset): (S or 1, C, d), (S, C, d), (S, d) -> (S,
    C, d)."""
    streams, rows, width = taken.shape
    for stream in range(streams):
        high, low = gain[stream], offset[stream]
        for row in range(rows):
            left, right, result = (
                values[stream if len(values) > 1 else 0, row],
                taken[stream, row],
                out[stream, row],
            )
            factor = scale[first[row]]
            for column in range(width):
                result[column] = (
                    max((left[column] - right[column]) * high[column] + low[column], np.float32(0))
                    * factor
                )


@kernel
def weigh(z: Floats, weights: Floats, graph: Integers) -> Floats:
    """Each expert's part times its weight: z (C, r, S, K'), weights (G, S, K), graph (C,) -> (S, C,
    K * r)."""
    rows, rank, streams, _ = z.shape
    experts = weights.shape[2]
    out = np.empty((streams, rows, experts * rank), np.float32)
    for stream in range(streams):
        for row in range(rows):
            for expert in range(experts):
                weight = weights[graph[row], stream, expert]
                for k in range(rank):
                    out[stream, row, expert * rank + k] = weight * z[row, k, stream, expert]
    return out


@kernel
def mean_differences(outputs: Floats, own: Integers) -> Floats:
    """Mean absolute difference of every expert's output from the own expert's: (K, S, G, d), (S,)
    -> (G, S, K)."""
    experts, streams, graphs, width = outputs.shape
    out = np.empty((graphs, streams, experts), np.float32)
    for graph in range(graphs):
        for stream in range(streams):
            mine = outputs[own[stream], stream, graph]
            for expert in range(experts):
                other = outputs[expert, stream, graph]
                total = np.float32(0)
                for column in range(width):
                    total += abs(other[column] - mine[column])
                out[graph, stream, expert] = total / np.float32(width)
    return out
