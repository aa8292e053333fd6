"""Every kernel of the compiled model against loops in float64.

The inputs are multiples of a half, whose float32 sums are exact in any order: but for divisions the
answers must be equal, whatever the width of the processor's registers.
"""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.compiled import kernels
from tests.models.conftest import AsRun
from tests.oracles_kernels import cases, gathered, graph_sizes, random_graphs, small_halves
from tests.strategies import quick


@pytest.mark.parametrize("width", [1, 7, 8, 33])
def test_gather_sums_a_node_and_its_neighbours(as_run: AsRun, width: int) -> None:
    graphs = random_graphs((1, 6, 12), seed=0)
    values = small_halves(np.random.default_rng(1), graphs.num_classes, width)
    for node in range(graphs.num_nodes):
        out = np.full(width, 99, np.float32)
        as_run(kernels._gather)(out, values, node, graphs.classes, graphs.starts, graphs.sources)
        assert out.tolist() == gathered(graphs, values, node).tolist()
    assert not graphs.neighbours(0)  # an isolated node was among them


@pytest.mark.parametrize(
    ("given_streams", "streams", "experts", "padded", "rank", "width"),
    [
        (1, 1, 1, 1, 1, 0),
        (1, 1, 1, 8, 1, 1),
        (1, 4, 3, 8, 2, 5),
        (3, 3, 3, 8, 5, 9),
        (2, 2, 9, 16, 3, 0),
        (1, 2, 1, 1, 4, 8),
    ],
)
def test_aggregate(
    as_run: AsRun,
    given_streams: int,
    streams: int,
    experts: int,
    padded: int,
    rank: int,
    width: int,
) -> None:
    for graphs, _, rng in cases(streams=(1,)):
        total_width, rows = width + experts * rank, len(graphs.representatives)
        values = small_halves(rng, given_streams, graphs.num_classes, total_width)
        bonds = small_halves(rng, rows, total_width)
        out = np.full((given_streams, rows, width), 99, np.float32)
        rectified = as_run(kernels.aggregate)(
            out,
            values,
            bonds,
            graphs.representatives,
            graphs.classes,
            graphs.starts,
            graphs.sources,
            graphs.scale,
            streams,
            experts,
            padded,
        )
        expected_out = np.empty_like(out)
        expected = np.zeros((rows, rank, streams, padded))
        for row, node in enumerate(graphs.representatives):
            for stream in range(streams):
                source = min(stream, given_streams - 1)  # one stream stands for all
                message = graphs.scale[node] * gathered(graphs, values[source], node) + bonds[row]
                expected_out[source, row] = message[:width]
                for expert in range(experts):
                    for k in range(rank):
                        seen = message[width + expert * rank + k]
                        expected[row, k, stream, expert] = max(seen, 0)
        np.testing.assert_array_equal(out, expected_out)
        np.testing.assert_array_equal(rectified, expected)


@pytest.mark.parametrize(
    ("streams", "rows", "width", "rank"), [(1, 1, 1, 1), (3, 5, 17, 4), (2, 0, 8, 3), (1, 7, 8, 9)]
)
def test_project_is_a_matrix_product_for_each_stream(
    as_run: AsRun, streams: int, rows: int, width: int, rank: int
) -> None:
    rng = np.random.default_rng(streams)
    h, down = small_halves(rng, streams, rows, width), small_halves(rng, streams, rank, width)
    out = as_run(kernels.project)(h, down)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, [a @ b.T for a, b in zip(h, down, strict=True)])


@pytest.mark.parametrize(("rank", "width"), [(1, 1), (3, 7), (4, 8), (5, 19)])
def test_single_adapter_layer_is_message_adapter_norm_and_relu(
    as_run: AsRun, rank: int, width: int
) -> None:
    for graphs, streams, rng in cases():
        rows = len(graphs.representatives)
        values = small_halves(rng, streams, graphs.num_classes, width)
        projected = small_halves(rng, streams, graphs.num_classes, rank)
        bonds = small_halves(rng, rows, width)
        projected_bonds = small_halves(rng, streams, rows, rank)
        up = small_halves(rng, streams, rank, width)
        gain, offset = small_halves(rng, streams, width), small_halves(rng, streams, width)
        out = np.full((streams, rows, width), 99, np.float32)
        as_run(kernels.single_adapter_layer)(
            out,
            values,
            projected,
            bonds,
            projected_bonds,
            up,
            gain,
            offset,
            graphs.representatives,
            graphs.classes,
            graphs.starts,
            graphs.sources,
            graphs.scale,
        )
        expected = np.empty_like(out)
        for stream in range(streams):
            for row, node in enumerate(graphs.representatives):
                factor = graphs.scale[node]
                message = factor * gathered(graphs, values[stream], node) + bonds[row]
                seen = (
                    factor * gathered(graphs, projected[stream], node)
                    + projected_bonds[stream, row]
                )
                corrected = message - np.maximum(seen, 0) @ up[stream].astype(np.float64)
                normalised = corrected * gain[stream] + offset[stream]
                expected[stream, row] = factor * np.maximum(normalised, 0)
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_single_adapter_readout_is_the_mean_of_rectified_projections(
    as_run: AsRun, rank: int
) -> None:
    for graphs, streams, rng in cases():
        projected = small_halves(rng, streams, graphs.num_classes, rank)
        projected_bonds = small_halves(rng, streams, graphs.num_nodes, rank)
        out = as_run(kernels.single_adapter_readout)(
            projected,
            projected_bonds,
            graphs.classes,
            graphs.starts,
            graphs.sources,
            graphs.scale,
            graphs.graph_starts,
        )
        expected = np.zeros((streams, graphs.num_graphs, rank))
        for stream in range(streams):
            for graph in range(graphs.num_graphs):
                for node in graphs.nodes(graph):
                    seen = (
                        graphs.scale[node] * gathered(graphs, projected[stream], node)
                        + projected_bonds[stream, node]
                    )
                    expected[stream, graph] += np.maximum(seen, 0) / len(graphs.nodes(graph))
        np.testing.assert_allclose(out, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shared_values", [True, False])
@pytest.mark.parametrize(("streams", "width"), [(1, 1), (3, 8), (4, 11)])
def test_activate_subtracts_normalises_and_rectifies(
    as_run: AsRun, shared_values: bool, streams: int, width: int
) -> None:
    rng = np.random.default_rng(width)
    representatives = np.array([4, 0, 0, 2])
    scale = rng.integers(1, 5, 5).astype(np.float32)
    values = small_halves(rng, 1 if shared_values else streams, len(representatives), width)
    correction = small_halves(rng, streams, len(representatives), width)
    gain, offset = small_halves(rng, streams, width), small_halves(rng, streams, width)
    out = np.full_like(correction, 99)
    as_run(kernels.activate)(out, values, correction, gain, offset, representatives, scale)
    normalised = (values - correction) * gain[:, None] + offset[:, None]
    np.testing.assert_array_equal(out, scale[representatives][:, None] * np.maximum(normalised, 0))


@pytest.mark.parametrize(
    ("rows", "rank", "streams", "experts", "padded"),
    [(1, 1, 1, 1, 1), (5, 3, 2, 3, 8), (0, 2, 1, 2, 8), (4, 5, 3, 9, 16)],
)
def test_weight_projections_scales_each_expert(
    as_run: AsRun, rows: int, rank: int, streams: int, experts: int, padded: int
) -> None:
    rng = np.random.default_rng(rows)
    z = small_halves(rng, rows, rank, streams, padded)
    weights = small_halves(rng, 3, streams, experts)
    graph = rng.integers(0, 3, rows)
    out = as_run(kernels.weight_projections)(z, weights, graph)
    assert out.shape == (streams, rows, experts * rank)
    for stream, row, expert, k in np.ndindex(streams, rows, experts, rank):
        expected = weights[graph[row], stream, expert] * z[row, k, stream, expert]
        assert out[stream, row, expert * rank + k] == expected


@pytest.mark.parametrize(
    ("experts", "streams", "tasks", "graphs", "width"),
    [(1, 1, 1, 1, 1), (5, 3, 3, 4, 13), (5, 2, 4, 3, 9), (3, 2, 2, 0, 8)],
)
def test_mean_absolute_differences_are_from_the_target_expert(
    as_run: AsRun, experts: int, streams: int, tasks: int, graphs: int, width: int
) -> None:
    rng = np.random.default_rng(width)
    outputs = small_halves(rng, experts, streams, graphs, width)
    target_expert, of_task = rng.integers(0, experts, tasks), rng.integers(0, streams, tasks)
    out = as_run(kernels.mean_absolute_differences)(outputs, target_expert, of_task)
    assert out.shape == (graphs, tasks, experts)
    for graph, task, expert in np.ndindex(*out.shape):
        outputs_there = outputs[:, of_task[task], graph].tolist()
        a, b = outputs_there[expert], outputs_there[target_expert[task]]
        expected = sum(abs(x - y) for x, y in zip(a, b, strict=True)) / width
        assert out[graph, task, expert] == pytest.approx(expected, rel=1e-6)
        assert expert != target_expert[task] or out[graph, task, expert] == 0


@pytest.mark.parametrize(
    ("labels", "rank", "graphs"), [([1], 1, 1), ([2, 1, 5], 3, 4), ([3, 2], 2, 0), ([4], 0, 2)]
)
def test_adapters_are_subtracted_from_the_logits_of_their_tasks(
    as_run: AsRun, labels: list[int], rank: int, graphs: int
) -> None:
    rng = np.random.default_rng(rank)
    starts = np.concatenate([[0], np.cumsum(labels)])
    logits, up = small_halves(rng, graphs, sum(labels)), small_halves(rng, sum(labels), rank)
    projected, before = small_halves(rng, graphs, len(labels) * rank), logits.copy()
    as_run(kernels.subtract_adapters)(logits, projected, up, starts)
    for task, (begin, end) in enumerate(pairwise(starts)):
        z = np.maximum(projected[:, task * rank : (task + 1) * rank], 0)
        expected = before[:, begin:end] - z @ up[begin:end].T
        np.testing.assert_allclose(logits[:, begin:end], expected, rtol=0, atol=1e-6)


@quick
@given(sizes=graph_sizes(), seed=st.integers(0, 10**6))
def test_a_layer_of_one_expert_is_that_layer_of_the_expert_by_itself(
    sizes: tuple[int, ...], seed: int
) -> None:
    """Both ways through a layer agree where they must: one expert, whose weight is 1."""
    graphs, rng = random_graphs(sizes, seed), np.random.default_rng(seed)
    rank, width, rows = 3, 10, len(graphs.representatives)
    values = small_halves(rng, 1, graphs.num_classes, width + rank)
    bonds = small_halves(rng, rows, width + rank)
    up = small_halves(rng, 1, rank, width)
    gain, offset = small_halves(rng, 1, width), small_halves(rng, 1, width)
    where = graphs.representatives, graphs.classes, graphs.starts, graphs.sources, graphs.scale
    mixed, single = (np.empty((1, rows, width), np.float32) for _ in range(2))
    messages = np.empty_like(mixed)
    z = kernels.aggregate(messages, values, bonds, *where, 1, 1, 1)
    weights, graph = np.ones((1, 1, 1), np.float32), np.zeros(rows, np.int64)
    correction = kernels.weight_projections(z, weights, graph) @ up
    kernels.activate(
        mixed, messages, correction, gain, offset, graphs.representatives, graphs.scale
    )
    projected, projected_bonds = values[..., width:].copy(), bonds[None, :, width:].copy()
    kernels.single_adapter_layer(
        single,
        values[..., :width].copy(),
        projected,
        bonds[:, :width].copy(),
        projected_bonds,
        up,
        gain,
        offset,
        *where,
    )
    np.testing.assert_array_equal(mixed, single)
