"""Kernels of `models.compiled.model` between its matrix products, compiled by numba for one core.

Chains of tensor operations would read and write memory once per step; these loops do so once.

All kernels here, in `models.compiled.batch` and in `models.compiled.transport` are for inference
and take C-contiguous float32 and int64 arrays. Dimensions: S streams, T requested tasks, G
graphs, N nodes, C classes of equivalent nodes (`models.compiled.batch`), K experts, r the rank of
their adapters, d the width of the backbone.
"""

import numpy as np

from models.ops.jit import Floats, Integers, kernel


@kernel
def _gather(
    out: Floats, values: Floats, node: int, classes: Integers, starts: Integers, sources: Integers
) -> None:
    """Sum the rows of `values` that belong to a node and to its neighbours: out (w,)."""
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
    representatives: Integers,
    classes: Integers,
    starts: Integers,
    sources: Integers,
    scale: Floats,
    streams: int,
    experts: int,
    padded_experts: int,
) -> Floats:
    """Aggregate the messages of every class, and split off what the experts' adapters read.

    Args:
        out: (S or 1, C', d) output buffer for the messages that go on; d may be 0.
        values: (S or 1, C, d + K * r) rows of the previous layer's classes, already multiplied by
            `scale` of their nodes: the convolution's columns, then every adapter's projection.
        bonds: (C', d + K * r) contribution of the bonds to the same columns.
        representatives: (C',) one node of each class.
        classes: (N,) class of each node in the previous layer.
        starts, sources: (N + 1,) and (E,) the neighbours of each node.
        scale: (N,) 1 / sqrt(degree).
        streams, experts, padded_experts: S, K and K', K rounded up to the SIMD width.

    Returns:
        (C', r, S, K') the adapters' projections after relu; 0 for the padding.
    """
    num_inputs, _, total_width = values.shape
    width = out.shape[2]
    rank = (total_width - width) // experts
    rectified = np.zeros((len(representatives), rank, streams, padded_experts), np.float32)
    work = np.empty(total_width, np.float32)
    for stream in range(num_inputs):
        for row in range(len(representatives)):
            node = representatives[row]
            _gather(work, values[stream], node, classes, starts, sources)
            factor = scale[node]
            for column in range(total_width):
                work[column] = factor * work[column] + bonds[row, column]
            for column in range(width):
                out[stream, row, column] = work[column]
            for expert in range(experts):
                for k in range(rank):
                    rectified[row, k, stream, expert] = max(
                        work[width + expert * rank + k], np.float32(0)
                    )
    for row in range(len(representatives)):
        for k in range(rank):
            for stream in range(num_inputs, streams):
                for expert in range(padded_experts):
                    rectified[row, k, stream, expert] = rectified[row, k, 0, expert]
    return rectified


@kernel
def project(h: Floats, down: Floats) -> Floats:
    """Multiply every stream by the `down` matrix of its adapter: h (S, C, d), down (S, r, d) ->
    (S, C, r).

    With r this small, plain loops are faster than a BLAS call.
    """
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
def single_adapter_layer(
    out: Floats,
    values: Floats,
    projected: Floats,
    bonds: Floats,
    projected_bonds: Floats,
    up: Floats,
    gain: Floats,
    offset: Floats,
    representatives: Integers,
    classes: Integers,
    starts: Integers,
    sources: Integers,
    scale: Floats,
) -> None:
    """Compute a layer after its matrix product, for streams with one adapter each.

    The steps are message passing, the adapter's correction, BatchNorm and relu.

    Args:
        out: (S, C', d) output buffer; its rows are multiplied by `scale`.
        values, projected: (S, C, d) and (S, C, r) rows of the previous layer's classes, multiplied
            by `scale`: the convolution's columns and the adapter's projection.
        bonds, projected_bonds: (C', d) and (S, C', r) contribution of the bonds to both.
        up: (S, r, d) the adapters' `up` matrices.
        gain, offset: (S, d) the folded BatchNorm.
        representatives, classes, starts, sources, scale: as in `aggregate`.
    """
    streams, rank, width = up.shape
    work, z = np.empty(width, np.float32), np.empty(rank, np.float32)
    for stream in range(streams):
        stream_gain, stream_offset = gain[stream], offset[stream]
        for row in range(len(representatives)):
            node = representatives[row]
            factor, bond, result = scale[node], bonds[row], out[stream, row]
            _gather(work, values[stream], node, classes, starts, sources)
            _gather(z, projected[stream], node, classes, starts, sources)
            for column in range(width):
                work[column] = factor * work[column] + bond[column]
            for k in range(rank):
                projection = factor * z[k] + projected_bonds[stream, row, k]
                if projection > 0:
                    correction = up[stream, k]
                    for column in range(width):
                        work[column] -= projection * correction[column]
            for column in range(width):
                result[column] = (
                    max(work[column] * stream_gain[column] + stream_offset[column], np.float32(0))
                    * factor
                )


@kernel
def single_adapter_readout(
    projected: Floats,
    projected_bonds: Floats,
    classes: Integers,
    starts: Integers,
    sources: Integers,
    scale: Floats,
    graph_starts: Integers,
) -> Floats:
    """Average the rectified projections of each stream's adapter over the nodes of each graph.

    Args:
        projected: (S, C, r) projections of the previous layer's classes, multiplied by `scale`.
        projected_bonds: (S, N, r) contribution of the bonds.
        classes: (N,) class of each node in the previous layer.
        starts, sources, scale: as in `aggregate`.
        graph_starts: (G + 1,) first node of each graph.

    Returns:
        (S, G, r); 0 for a graph without nodes.
    """
    streams, _, rank = projected_bonds.shape
    out = np.zeros((streams, len(graph_starts) - 1, rank), np.float32)
    z = np.empty(rank, np.float32)
    for stream in range(streams):
        for graph in range(len(graph_starts) - 1):
            result = out[stream, graph]
            begin, end = graph_starts[graph], graph_starts[graph + 1]
            for node in range(begin, end):
                _gather(z, projected[stream], node, classes, starts, sources)
                bond = projected_bonds[stream, node]
                for k in range(rank):
                    result[k] += max(scale[node] * z[k] + bond[k], np.float32(0))
            for k in range(rank):
                result[k] /= np.float32(max(end - begin, 1))
    return out


@kernel
def activate(
    out: Floats,
    values: Floats,
    correction: Floats,
    gain: Floats,
    offset: Floats,
    representatives: Integers,
    scale: Floats,
) -> None:
    """Subtract a correction, apply BatchNorm and relu: out = scale * relu(gain (values -
    correction) + offset).

    Args:
        out: (S, C, d) output buffer.
        values: (S or 1, C, d).
        correction: (S, C, d).
        gain, offset: (S, d).
        representatives: (C,) one node of each class.
        scale: (N,).
    """
    streams, rows, width = correction.shape
    for stream in range(streams):
        stream_gain, stream_offset = gain[stream], offset[stream]
        for row in range(rows):
            left = values[stream if len(values) > 1 else 0, row]
            right = correction[stream, row]
            result = out[stream, row]
            factor = scale[representatives[row]]
            for column in range(width):
                result[column] = (
                    max(
                        (left[column] - right[column]) * stream_gain[column]
                        + stream_offset[column],
                        np.float32(0),
                    )
                    * factor
                )


@kernel
def weight_projections(z: Floats, weights: Floats, graph: Integers) -> Floats:
    """Multiply every expert's projection by its routing weight.

    Args:
        z: (C, r, S, K').
        weights: (G, S, K).
        graph: (C,) graph of each class.

    Returns:
        (S, C, K * r).
    """
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
def mean_absolute_differences(
    outputs: Floats, target_expert: Integers, stream_of_task: Integers
) -> Floats:
    """Compute the mean absolute difference between every expert's output and the target expert's.

    Args:
        outputs: (K, S, G, d).
        target_expert: (T,) index of the expert of each task.
        stream_of_task: (T,) index of the stream of each task.

    Returns:
        (G, T, K).
    """
    experts, _, graphs, width = outputs.shape
    out = np.empty((graphs, len(target_expert), experts), np.float32)
    for graph in range(graphs):
        for task in range(len(target_expert)):
            stream = stream_of_task[task]
            target = outputs[target_expert[task], stream, graph]
            for expert in range(experts):
                output = outputs[expert, stream, graph]
                total = np.float32(0)
                for column in range(width):
                    total += abs(output[column] - target[column])
                out[graph, task, expert] = total / np.float32(width)
    return out


@kernel
def subtract_adapters(
    logits: Floats, projected: Floats, folded_up: Floats, starts: Integers
) -> None:
    """Subtract what each task's graph adapter takes from its logits.

    Args:
        logits: (G, C) of all tasks side by side, changed in place.
        projected: (G, T * r) the adapters' projections before relu.
        folded_up: (C, r) the heads times the adapters' transposed `up` matrices.
        starts: (T + 1,) where the logits of each task start.
    """
    rank = folded_up.shape[1]
    z = np.empty(rank, np.float32)
    for graph in range(len(logits)):
        for task in range(len(starts) - 1):
            for k in range(rank):
                z[k] = max(projected[graph, task * rank + k], np.float32(0))
            for label in range(starts[task], starts[task + 1]):
                row, total = folded_up[label], np.float32(0)
                for k in range(rank):
                    total += z[k] * row[k]
                logits[graph, label] -= total
