"""The router's transport problems, all of a graph at once: a lane for each stream and expert, for
numba to put into vectors.

Source: G-Merging's routing; the problems are those of `models.experts.router.node_distances`.
"""

import math

import numpy as np

from models.ops.jit import Floats, Integers, kernel

LANES = 8
"""The number of experts is padded to a multiple of this: eight float32 fill a vector register of
AVX."""
_HALVINGS = 5  # exp(x) is the 32nd power of exp(x / 32), and that is a polynomial
_THIRD, _FOURTH, _FIFTH, _SIXTH = (np.float32(1 / math.factorial(k)) for k in (3, 4, 5, 6))
_TINY = np.float32(np.finfo(np.float32).tiny ** 0.5)
_SATURATED = np.float32(1e30)


@kernel
def _dot(out: Floats, left: Floats, right: Floats) -> None:
    """out = sum_k left_k right_k in every lane: left and right (r, W). Four rows at a time, so that
    sums stay in registers."""
    rank, width = left.shape
    done = rank % 4
    for lane in range(width):
        out[lane] = np.float32(0)
    for k in range(done):
        for lane in range(width):
            out[lane] += left[k, lane] * right[k, lane]
    for k in range(done, rank, 4):
        a0, a1, a2, a3 = left[k], left[k + 1], left[k + 2], left[k + 3]
        b0, b1, b2, b3 = right[k], right[k + 1], right[k + 2], right[k + 3]
        for lane in range(width):
            out[lane] += (a0[lane] * b0[lane] + a1[lane] * b1[lane]) + (
                a2[lane] * b2[lane] + a3[lane] * b3[lane]
            )


@kernel
def transport_distances(
    z: Floats,
    squares: Floats,
    facing: Floats,
    own: Integers,
    classes: Integers,
    starts: Integers,
    sources: Integers,
    graph_starts: Integers,
    epsilon: float,
    tolerance: float,
    max_iters: int,
) -> Floats:
    """Entropic TWD between every expert's output and the own expert's, per graph and stream
    (`models.experts.router.node_distances` in scaling form).

    The sweeps are those of `models.transport.sinkhorn` with u = exp(f / epsilon) and v = exp(g /
    epsilon): a cost lies in [0, 1], so that nothing overflows while epsilon is at least 0.05. All
    problems of a graph are worked on together, a lane each, and stop one by one.

    Args:
        z: (C, r, S, K') rectified projections.
        squares: (r, r, S, K') W_up_i W_up_i^T, the same for every stream.
        facing: (r, r, S, K') W_up_i W_up_own^T.
        own: (S,) the own expert of each stream.
        classes: (N,) which row of z belongs to a node.
        starts, sources: neighbours of each node; with the node itself, where mass may move.
        graph_starts: (G + 1,).
        epsilon, tolerance, max_iters: see `models.transport.problem.SinkhornParams`.

    Returns:
        (G, S, K').
    """
    rows, rank, streams, experts = z.shape
    width = streams * experts
    flat, squares, facing = (
        z.reshape(rows, rank, width),
        squares.reshape(rank, rank, width),
        facing.reshape(rank, rank, width),
    )
    graphs = len(graph_starts) - 1
    most_nodes, most_entries = 0, 0
    for graph in range(graphs):
        begin, end = graph_starts[graph], graph_starts[graph + 1]
        most_nodes = max(most_nodes, end - begin)
        most_entries = max(most_entries, starts[end] - starts[begin] + end - begin)
    out = np.zeros((graphs, width), np.float32)
    # what an expert's z is multiplied with for its inner product with the own output
    ahead = np.empty((most_nodes, rank, width), np.float32)
    mine, work = np.empty((rank, width), np.float32), np.empty((rank, width), np.float32)
    norm, own_norm = (
        np.empty((most_nodes, width), np.float32),
        np.empty((most_nodes, width), np.float32),
    )
    cost, kernel = (
        np.empty((most_entries, width), np.float32),
        np.empty((most_entries, width), np.float32),
    )
    u, v, total = (
        np.empty((most_nodes, width), np.float32),
        np.empty((most_nodes, width), np.float32),
        np.empty((most_nodes, width), np.float32),
    )
    sums, moved, active = (
        np.empty(width, np.float32),
        np.empty(width, np.float32),
        np.empty(width, np.float32),
    )
    column_of, first_of = np.empty(most_entries, np.int64), np.empty(most_nodes + 1, np.int64)
    enough, sharp = (
        np.float32(math.exp(tolerance / epsilon)),
        np.float32(-(0.5**_HALVINGS) / epsilon),
    )
    for graph in range(graphs):
        begin, nodes = graph_starts[graph], graph_starts[graph + 1] - graph_starts[graph]
        mass = np.float32(1 / max(nodes, 1))
        entries = 0
        for node in range(nodes):
            first_of[node] = entries
            column_of[entries] = node
            entries += 1
            for entry in range(starts[begin + node], starts[begin + node + 1]):
                column_of[entries] = sources[entry] - begin
                entries += 1
        first_of[nodes] = entries
        for node in range(nodes):
            row = flat[classes[begin + node]]
            for k in range(rank):
                for stream in range(streams):
                    value = row[k, stream * experts + own[stream]]
                    for lane in range(stream * experts, (stream + 1) * experts):
                        mine[k, lane] = value
            for k in range(rank):
                _dot(work[k], squares[k], row)
                _dot(ahead[node, k], facing[k], mine)
            _dot(sums, work, row)
            for lane in range(width):
                norm[node, lane] = math.sqrt(max(sums[lane], np.float32(0)))
                u[node, lane] = np.float32(1)
                v[node, lane] = np.float32(1)
            for stream in range(streams):
                value = norm[node, stream * experts + own[stream]]
                for lane in range(stream * experts, (stream + 1) * experts):
                    own_norm[node, lane] = value
        for node in range(nodes):
            row = flat[classes[begin + node]]
            for entry in range(first_of[node], first_of[node + 1]):
                column = column_of[entry]
                _dot(sums, row, ahead[column])
                for lane in range(width):
                    length = norm[node, lane] * own_norm[column, lane]
                    cosine = sums[lane] / max(length, _TINY) if length > _TINY else np.float32(0)
                    value = min(
                        max(np.float32(1) - cosine, np.float32(0)), np.float32(2)
                    ) * np.float32(0.5)
                    # Two zero outputs are equal: no distance, as in models.twd.
                    value = (
                        np.float32(0) if norm[node, lane] + own_norm[column, lane] == 0 else value
                    )
                    cost[entry, lane] = value
                    # exp(-cost / epsilon) by a polynomial and squarings, which vectorise where a
                    # call to exp does not. Relative error: 3e-6 at an exponent of -10, 4e-4 at
                    # -20, the least that an epsilon of 0.05 allows.
                    x = value * sharp
                    p = x * (x * (x * (x * _SIXTH + _FIFTH) + _FOURTH) + _THIRD) + np.float32(0.5)
                    p = x * (x * p + np.float32(1)) + np.float32(1)
                    for _ in range(_HALVINGS):
                        p = p * p
                    kernel[entry, lane] = p
        for lane in range(width):
            active[lane] = np.float32(1)
        for _ in range(max_iters):
            for lane in range(width):
                moved[lane] = np.float32(1)
            for node in range(nodes):
                for lane in range(width):
                    sums[lane] = np.float32(0)
                    total[node, lane] = np.float32(0)
                for entry in range(first_of[node], first_of[node + 1]):
                    column = column_of[entry]
                    for lane in range(width):
                        sums[lane] += kernel[entry, lane] * v[column, lane]
                # sum |f - f_previous| < tolerance as a product of ratios, which needs no logarithm;
                # beyond `enough` it does not matter
                for lane in range(width):
                    before = u[node, lane]
                    update = mass / sums[lane]
                    ratio = update / before
                    moved[lane] = min(moved[lane] * max(ratio, np.float32(1) / ratio), _SATURATED)
                    u[node, lane] = update if active[lane] > 0 else before
            for node in range(nodes):
                for entry in range(first_of[node], first_of[node + 1]):
                    column = column_of[entry]
                    for lane in range(width):
                        total[column, lane] += kernel[entry, lane] * u[node, lane]
            for node in range(nodes):
                for lane in range(width):
                    v[node, lane] = mass / total[node, lane]
            busy = np.float32(0)
            for lane in range(width):
                still = active[lane] if moved[lane] >= enough else np.float32(0)
                active[lane] = still
                busy += still
            if busy == 0:
                break
        result = out[graph]
        for node in range(nodes):
            for entry in range(first_of[node], first_of[node + 1]):
                column = column_of[entry]
                for lane in range(width):
                    result[lane] += (
                        u[node, lane] * kernel[entry, lane] * v[column, lane] * cost[entry, lane]
                    )
    return out.reshape(graphs, streams, experts)
