"""The router's transport problems against dense ones in float64, solved one by one."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.compiled import transport
from tests.models.conftest import AsRun
from tests.oracles_kernels import RAGGED_SIZES, KernelGraphs, random_graphs, small_halves
from tests.oracles_transport import dense_cost, published_sinkhorn

_TOLERANCE = 1e-5
_CLEAR = 0.02  # of the tolerance: float32 cannot take a change for one on its other side


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5, 7, 8, 11])
@pytest.mark.parametrize("width", [1, 7, 8, 24, 35])
def test_dot_sums_over_the_rank(as_run: AsRun, rank: int, width: int) -> None:
    rng = np.random.default_rng(rank)
    left, right = small_halves(rng, rank, width), small_halves(rng, rank, width)
    out = np.full(width, 99, np.float32)
    as_run(transport._dot)(out, left, right)
    np.testing.assert_array_equal(out, (left * right).sum(0))


@dataclass(frozen=True, eq=False)
class Problems:
    """Projections of K experts in S streams, and the experts' up matrices.

    Attributes:
        z: (C, r, S, K').
        up: (K, r, d).
        target_expert: (S,).
    """

    graphs: KernelGraphs
    z: NDArray[np.float32]
    up: NDArray[np.float32]
    target_expert: NDArray[np.int64]

    def solved(self, run: Any, epsilon: float, tolerance: float, max_iters: int) -> Any:
        """Solve with the kernel: (G, S, K) distances."""
        experts, rank, _ = self.up.shape
        streams, padded = self.z.shape[2:]
        self_gram, cross_gram = np.zeros((2, rank, rank, streams, padded), np.float32)
        for stream, expert in np.ndindex(streams, experts):
            self_gram[..., stream, expert] = self.up[expert] @ self.up[expert].T
            cross_gram[..., stream, expert] = (
                self.up[expert] @ self.up[self.target_expert[stream]].T
            )
        graphs = self.graphs
        where = graphs.classes, graphs.starts, graphs.sources, graphs.graph_starts
        distances = run(
            self.z, self_gram, cross_gram, self.target_expert, *where, epsilon, tolerance, max_iters
        )
        assert distances.shape == (graphs.num_graphs, streams, padded)
        return distances[..., :experts]

    def outputs(self, stream: int, expert: int) -> Any:
        """Compute the correction of an expert at every node of a stream: (N, d)."""
        rows = self.z[self.graphs.classes, :, stream, expert].astype(np.float64)
        return rows @ self.up[expert].astype(np.float64)

    def expected(self, graph: int, stream: int, expert: int, *params: Any) -> float | None:
        """Solve one problem densely; None where float32 may take one sweep more or less."""
        nodes = self.graphs.nodes(graph)
        if not nodes:
            return 0.0
        rows = slice(nodes.start, nodes.stop)
        target_expert = self.outputs(stream, self.target_expert[stream])[rows]
        cost = dense_cost(self.outputs(stream, expert)[rows], target_expert)
        mask, (epsilon, tolerance, max_iters) = self.graphs.mask(graph), params
        sweeps = {
            published_sinkhorn(cost, mask, epsilon, factor * tolerance, max_iters)[2]
            for factor in (1 - _CLEAR, 1 + _CLEAR)
        }
        if len(sweeps) > 1:
            return None
        return published_sinkhorn(cost, mask, *params)[0]


def random_problems(
    sizes: tuple[int, ...], streams: int, experts: int, padded: int, rank: int, seed: int = 0
) -> Problems:
    graphs, rng = random_graphs(sizes, seed, symmetric=True), np.random.default_rng(seed)
    z = np.zeros((graphs.num_classes, rank, streams, padded), np.float32)
    z[..., :experts] = np.maximum(
        rng.normal(size=(graphs.num_classes, rank, streams, experts)) + 0.3, 0
    )
    up = rng.normal(size=(experts, rank, 6)).astype(np.float32)
    return Problems(graphs, z, up, rng.integers(0, experts, streams))


def assert_solved(problems: Problems, run: Any, *params: Any) -> None:
    distances = problems.solved(run, *params)
    checked = 0
    for index in np.ndindex(*distances.shape):
        expected = problems.expected(*index, *params)
        if expected is not None:
            assert distances[index] == pytest.approx(expected, abs=_TOLERANCE), index
            checked += 1
    assert checked >= 0.8 * distances.size  # nearly none is left out


@pytest.mark.parametrize("sizes", RAGGED_SIZES)
@pytest.mark.parametrize(
    ("streams", "experts", "padded", "rank"), [(1, 1, 1, 1), (2, 3, 8, 5), (1, 9, 16, 4)]
)
def test_distances_of_ragged_graphs(
    sizes: tuple[int, ...], streams: int, experts: int, padded: int, rank: int
) -> None:
    problems = random_problems(sizes, streams, experts, padded, rank)
    assert_solved(problems, transport.transport_distances, 0.1, 0.1, 100)


@pytest.mark.parametrize(
    "params", [(0.1, 0.1, 100), (0.05, 0.003, 40), (0.3, 5.0, 100), (1.0, 1e-9, 1), (0.05, 1e-9, 7)]
)
def test_distances_by_parameters(as_run: AsRun, params: tuple[float, float, int]) -> None:
    """Where a tolerance cannot be met, exactly max_iters sweeps are made."""
    problems = random_problems((4, 0, 1, 5), 2, 2, 3, 3, seed=1)
    assert_solved(problems, as_run(transport.transport_distances), *params)


@pytest.mark.parametrize("unit", [2.0**-20, 2.0**20])
def test_distances_do_not_depend_on_the_length_of_the_outputs(unit: float) -> None:
    problems = random_problems((6, 3), 2, 3, 8, 4, seed=2)
    scaled = Problems(
        problems.graphs, problems.z * np.float32(unit), problems.up, problems.target_expert
    )
    run = transport.transport_distances
    np.testing.assert_array_equal(
        problems.solved(run, 0.1, 0.01, 50), scaled.solved(run, 0.1, 0.01, 50)
    )


def test_silent_and_opposite_experts(as_run: AsRun) -> None:
    """Costs at both ends: 0 between silent experts, 1/2 to a silent one, 1 between opposites."""
    graphs = random_graphs((1, 7), seed=3, symmetric=True)
    rank, experts = 2, 4
    z = np.ones((graphs.num_classes, rank, experts, experts), np.float32)
    z[..., 2:] = 0
    up = np.ones((experts, rank, 3), np.float32)
    up[1] = -1
    problems = Problems(graphs, z, up, np.arange(experts))
    distances = problems.solved(as_run(transport.transport_distances), 0.05, 0.01, 50)
    expected = [[0, 1, 0.5, 0.5], [1, 0, 0.5, 0.5], [0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0]]
    np.testing.assert_allclose(distances, [expected] * 2, atol=1e-6)


def test_outputs_too_short_for_a_squared_norm_have_cosine_zero(as_run: AsRun) -> None:
    graphs = random_graphs((3,), seed=4, symmetric=True)
    z = np.full((graphs.num_classes, 1, 1, 2), 1e-15, np.float32)
    problems = Problems(graphs, z, np.ones((2, 1, 1), np.float32), np.array([0]))
    run = as_run(transport.transport_distances)
    assert float(transport._TINY) > 1e-30
    np.testing.assert_allclose(problems.solved(run, 0.1, 0.1, 100), 0.5, rtol=1e-6)


def test_what_else_is_in_the_batch_changes_nothing(as_run: AsRun) -> None:
    """Graphs and experts stop one by one, however many there are beside them."""
    run = as_run(transport.transport_distances)
    whole = random_problems((5, 2, 6), 2, 3, 3, 3, seed=5)
    together = whole.solved(run, 0.05, 0.02, 60)
    starts, graphs = whole.graphs.graph_starts, whole.graphs
    for graph in range(3):
        begin, end = starts[graph], starts[graph + 1]
        first, last = graphs.starts[begin], graphs.starts[end]
        single = KernelGraphs(
            graph_starts=np.array([0, end - begin]),
            starts=graphs.starts[begin : end + 1] - first,
            sources=graphs.sources[first:last] - begin,
            bonds=graphs.bonds[first:last],
            scale=graphs.scale[begin:end],
            classes=graphs.classes[begin:end],
            num_classes=graphs.num_classes,
            representatives=graphs.representatives,
        )
        distances = Problems(single, whole.z, whole.up, whole.target_expert).solved(
            run, 0.05, 0.02, 60
        )
        np.testing.assert_allclose(distances[0], together[graph], rtol=0, atol=1e-6)
    pair = [0, 2]
    fewer = Problems(
        graphs, np.ascontiguousarray(whole.z[..., pair]), whole.up[pair], np.array([0, 1])
    )
    target_expert = np.array(pair)
    both = Problems(graphs, whole.z, whole.up, target_expert).solved(run, 0.05, 0.02, 60)
    np.testing.assert_allclose(
        fewer.solved(run, 0.05, 0.02, 60), both[..., pair], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(("least", "precision"), [(-10, 1e-5), (-20, 5e-4)])
def test_the_polynomial_is_an_exponential(as_run: AsRun, least: float, precision: float) -> None:
    """Two nodes whose outputs are at an angle, an expert equal to the target: the plan moves
    k / (1 + k) of the mass for k = exp(-cost / epsilon), in closed form."""
    edge = np.array([1, 0])
    graphs = KernelGraphs(
        graph_starts=np.array([0, 2]),
        starts=np.array([0, 1, 2]),
        sources=edge,
        bonds=np.zeros(2, np.int64),
        scale=np.ones(2, np.float32),
        classes=np.array([0, 1]),
        num_classes=2,
        representatives=np.array([0, 1]),
    )
    z = np.eye(2, dtype=np.float32)[:, :, None, None]
    run, epsilon = as_run(transport.transport_distances), 0.05
    for exponent in np.linspace(least, -1, 20):
        cost = -exponent * epsilon
        angle = math.acos(1 - 2 * cost)
        up = np.array([[[1, 0], [math.cos(angle), math.sin(angle)]]], np.float32)
        problems = Problems(graphs, z, up, np.array([0]))
        moved = math.exp(exponent) / (1 + math.exp(exponent))
        distance = problems.solved(run, epsilon, 1e-6, 5).item()
        assert distance == pytest.approx(cost * moved, rel=precision)
