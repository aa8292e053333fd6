"""Router kernels: the entropic transport problems of the node sites, for all streams and experts of
a graph at once.

The problems of a graph lie side by side in the last axis, one per stream and expert, so that numba
vectorises over them. Source: G-Merging's routing; the problems are those of
`models.experts.router.node_distances`.
"""

import math

import numpy as np

from models.ops.jit import Floats, Integers, kernel

SIMD_WIDTH = 8
"""The number of experts is padded to a multiple of this: eight float32 fill an AVX register."""
_HALVINGS = 5  # exp(x) is the 32nd power of exp(x / 32), and that is a polynomial
_THIRD, _FOURTH, _FIFTH, _SIXTH = (np.float32(1 / math.factorial(k)) for k in (3, 4, 5, 6))
_TINY = np.float32(np.finfo(np.float32).tiny ** 0.5)
_SATURATED = np.float32(1e30)


@kernel
def _dot(out: Floats, left: Floats, right: Floats) -> None:
    """Compute out = sum_k left_k * right_k for every problem: left and right (r, W), out (W,).

    Four rows at a time, so that the sums stay in registers.
    """
    rank, width = left.shape
    done = rank % 4
    for problem in range(width):
        out[problem] = np.float32(0)
    for k in range(done):
        for problem in range(width):
            out[problem] += left[k, problem] * right[k, problem]
    for k in range(done, rank, 4):
        a0, a1, a2, a3 = left[k], left[k + 1], left[k + 2], left[k + 3]
        b0, b1, b2, b3 = right[k], right[k + 1], right[k + 2], right[k + 3]
        for problem in range(width):
            out[problem] += (a0[problem] * b0[problem] + a1[problem] * b1[problem]) + (
                a2[problem] * b2[problem] + a3[problem] * b3[problem]
            )


@kernel
def transport_distances(
    z: Floats,
    self_gram: Floats,
    cross_gram: Floats,
    target_expert: Integers,
    classes: Integers,
    starts: Integers,
    sources: Integers,
    graph_starts: Integers,
    epsilon: float,
    tolerance: float,
    max_iters: int,
) -> Floats:
    """Compute the entropic TWD between every expert's output and the target expert's, per graph and
    stream.

    These are the distances of `models.experts.router.node_distances`. The sweeps are those of
    `models.transport.sinkhorn` with u = exp(f / epsilon) and v = exp(g / epsilon). A cost lies in
    [0, 1], so float32 does not overflow while epsilon is at least 0.05. All problems of a graph are
    solved together, side by side in the last axis, and each stops by itself.

    Args:
        z: (C, r, S, K') rectified projections.
        self_gram: (r, r, S, K') W_up_i W_up_i^T, the same for every stream.
        cross_gram: (r, r, S, K') W_up_i W_up_target^T.
        target_expert: (S,) index of the expert of each stream's task.
        classes: (N,) row of `z` of each node.
        starts, sources: neighbours of each node; mass may move to them and to the node itself.
        graph_starts: (G + 1,).
        epsilon, tolerance, max_iters: see `models.transport.problem.SinkhornParams`.

    Returns:
        (G, S, K'); 0 for a graph without nodes.
    """
    rows, rank, streams, experts = z.shape
    width = streams * experts
    flat = z.reshape(rows, rank, width)
    self_gram = self_gram.reshape(rank, rank, width)
    cross_gram = cross_gram.reshape(rank, rank, width)
    graphs = len(graph_starts) - 1
    most_nodes, most_entries = 0, 0
    for graph in range(graphs):
        begin, end = graph_starts[graph], graph_starts[graph + 1]
        most_nodes = max(most_nodes, end - begin)
        most_entries = max(most_entries, starts[end] - starts[begin] + end - begin)
    out = np.zeros((graphs, width), np.float32)
    # cross_gram @ z of the target expert: times an expert's z it is the outputs' inner product
    cross_z = np.empty((most_nodes, rank, width), np.float32)
    target_z, work = np.empty((rank, width), np.float32), np.empty((rank, width), np.float32)
    norm = np.empty((most_nodes, width), np.float32)
    target_norm = np.empty((most_nodes, width), np.float32)
    cost = np.empty((most_entries, width), np.float32)
    gibbs = np.empty((most_entries, width), np.float32)
    u = np.empty((most_nodes, width), np.float32)
    v = np.empty((most_nodes, width), np.float32)
    total = np.empty((most_nodes, width), np.float32)
    sums = np.empty(width, np.float32)
    change = np.empty(width, np.float32)
    active = np.empty(width, np.float32)
    columns, row_starts = np.empty(most_entries, np.int64), np.empty(most_nodes + 1, np.int64)
    stop_change = np.float32(math.exp(tolerance / epsilon))
    exponent_scale = np.float32(-(0.5**_HALVINGS) / epsilon)
    for graph in range(graphs):
        begin, nodes = graph_starts[graph], graph_starts[graph + 1] - graph_starts[graph]
        mass = np.float32(1 / max(nodes, 1))
        entries = 0
        for node in range(nodes):
            row_starts[node] = entries
            columns[entries] = node
            entries += 1
            for entry in range(starts[begin + node], starts[begin + node + 1]):
                columns[entries] = sources[entry] - begin
                entries += 1
        row_starts[nodes] = entries
        for node in range(nodes):
            row = flat[classes[begin + node]]
            for k in range(rank):
                for stream in range(streams):
                    value = row[k, stream * experts + target_expert[stream]]
                    for problem in range(stream * experts, (stream + 1) * experts):
                        target_z[k, problem] = value
            for k in range(rank):
                _dot(work[k], self_gram[k], row)
                _dot(cross_z[node, k], cross_gram[k], target_z)
            _dot(sums, work, row)
            for problem in range(width):
                norm[node, problem] = math.sqrt(max(sums[problem], np.float32(0)))
                u[node, problem] = np.float32(1)
                v[node, problem] = np.float32(1)
            for stream in range(streams):
                value = norm[node, stream * experts + target_expert[stream]]
                for problem in range(stream * experts, (stream + 1) * experts):
                    target_norm[node, problem] = value
        for node in range(nodes):
            row = flat[classes[begin + node]]
            for entry in range(row_starts[node], row_starts[node + 1]):
                column = columns[entry]
                _dot(sums, row, cross_z[column])
                for problem in range(width):
                    length = norm[node, problem] * target_norm[column, problem]
                    cosine = sums[problem] / max(length, _TINY) if length > _TINY else np.float32(0)
                    value = min(
                        max(np.float32(1) - cosine, np.float32(0)), np.float32(2)
                    ) * np.float32(0.5)
                    # Two zero outputs are equal: cost 0, as in models.transport.twd.
                    value = (
                        np.float32(0)
                        if norm[node, problem] + target_norm[column, problem] == 0
                        else value
                    )
                    cost[entry, problem] = value
                    # exp(-cost / epsilon) by a polynomial and squarings, which vectorise where a
                    # call to exp does not. Relative error: 3e-6 at an exponent of -10, 4e-4 at
                    # -20, the least that an epsilon of 0.05 allows.
                    x = value * exponent_scale
                    p = x * (x * (x * (x * _SIXTH + _FIFTH) + _FOURTH) + _THIRD) + np.float32(0.5)
                    p = x * (x * p + np.float32(1)) + np.float32(1)
                    for _ in range(_HALVINGS):
                        p = p * p
                    gibbs[entry, problem] = p
        for problem in range(width):
            active[problem] = np.float32(1)
        for _ in range(max_iters):
            for problem in range(width):
                change[problem] = np.float32(1)
            for node in range(nodes):
                for problem in range(width):
                    sums[problem] = np.float32(0)
                    total[node, problem] = np.float32(0)
                for entry in range(row_starts[node], row_starts[node + 1]):
                    column = columns[entry]
                    for problem in range(width):
                        sums[problem] += gibbs[entry, problem] * v[column, problem]
                # The test sum |f - f_previous| < tolerance as a product of ratios of u, without a
                # logarithm; capped so that it stays finite.
                for problem in range(width):
                    before = u[node, problem]
                    update = mass / sums[problem]
                    ratio = update / before
                    change[problem] = min(
                        change[problem] * max(ratio, np.float32(1) / ratio), _SATURATED
                    )
                    u[node, problem] = update if active[problem] > 0 else before
            for node in range(nodes):
                for entry in range(row_starts[node], row_starts[node + 1]):
                    column = columns[entry]
                    for problem in range(width):
                        total[column, problem] += gibbs[entry, problem] * u[node, problem]
            for node in range(nodes):
                for problem in range(width):
                    v[node, problem] = mass / total[node, problem]
            num_active = np.float32(0)
            for problem in range(width):
                still = active[problem] if change[problem] >= stop_change else np.float32(0)
                active[problem] = still
                num_active += still
            if num_active == 0:
                break
        result = out[graph]
        for node in range(nodes):
            for entry in range(row_starts[node], row_starts[node + 1]):
                column = columns[entry]
                for problem in range(width):
                    result[problem] += (
                        u[node, problem]
                        * gibbs[entry, problem]
                        * v[column, problem]
                        * cost[entry, problem]
                    )
    return out.reshape(graphs, streams, experts)
