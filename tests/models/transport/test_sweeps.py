"""Sinkhorn's sweeps against the published recipe on dense matrices, one graph and problem at a
time, in float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.transport.sweeps import log_domain_sweeps
from tests.models.conftest import AsRun, Kernel
from tests.oracles_kernels import RAGGED_SIZES, KernelGraphs, graph_sizes, random_graphs
from tests.oracles_transport import published_sinkhorn
from tests.strategies import quick

Array = NDArray[np.float64]
_CLEAR = 1e-6  # of the tolerance: no rounding of float64 takes a change for one on its other side


class Sweeps:
    """The kernel's arrays for random graphs, their nodes in a random order."""

    def __init__(self, graphs: KernelGraphs, problems: int, seed: int, spread: float = 1.0) -> None:
        rng = np.random.default_rng(seed)
        self.graphs, self.problems = graphs, problems
        self.masks = [graphs.mask(graph) for graph in range(graphs.num_graphs)]
        # node `k` of the dense matrices is node place[k] of the kernel
        self.position = rng.permutation(graphs.num_nodes)
        self.cost: dict[tuple[int, int], Array] = {}
        entries = []
        for graph, mask in enumerate(self.masks):
            here = self.position[graphs.nodes(graph)]
            for i, j in zip(*np.nonzero(mask), strict=True):
                entries.append((here[i], here[j], spread * rng.normal(size=problems)))
            for problem in range(problems):
                self.cost[graph, problem] = np.zeros(mask.shape)
        entries.sort(key=lambda entry: entry[:2])
        self.rows = np.array([row for row, _, _ in entries], np.int64)
        self.columns = np.array([column for _, column, _ in entries], np.int64)
        self.costs = np.array([cost for _, _, cost in entries]).reshape(len(entries), problems)
        for graph in range(graphs.num_graphs):
            nodes = self.position[graphs.nodes(graph)].tolist()
            for row, column, cost in zip(self.rows, self.columns, self.costs, strict=True):
                if row in nodes:
                    for problem in range(problems):
                        where = nodes.index(row), nodes.index(column)
                        self.cost[graph, problem][where] = cost[problem]

    def run(self, kernel: Kernel, epsilon: float, tolerance: float, max_iters: int) -> None:
        graphs = self.graphs
        self.phi, self.psi = np.zeros((2, graphs.num_nodes, self.problems))
        self.active = np.ones((graphs.num_graphs, self.problems))
        self.num_iters = np.zeros_like(self.active)
        starts = np.searchsorted(self.rows, np.arange(graphs.num_nodes + 1))
        kernel(
            self.position,
            graphs.graph_starts,
            starts,
            self.columns,
            self.costs / -epsilon,
            self.phi,
            self.psi,
            self.active,
            self.num_iters,
            epsilon,
            tolerance,
            max_iters,
        )

    def plan(self, graph: int, problem: int, epsilon: float) -> Array:
        """Compute the (n, n) plan from the potentials that the kernel left."""
        nodes, mask = self.position[self.graphs.nodes(graph)], self.masks[graph]
        logarithm = (
            self.phi[nodes, problem][:, None]
            + self.psi[nodes, problem]
            - self.cost[graph, problem] / epsilon
        )
        return np.where(mask, np.exp(np.where(mask, logarithm, 0)), 0)

    def check(self, epsilon: float, tolerance: float, max_iters: int) -> None:
        for (graph, problem), cost in self.cost.items():
            if not len(cost):
                continue
            recipe = cost, self.masks[graph]
            _, plan, sweeps = published_sinkhorn(*recipe, epsilon, tolerance, max_iters)
            clear = {
                published_sinkhorn(*recipe, epsilon, factor * tolerance, max_iters + 1)[2]
                for factor in (1 - _CLEAR, 1 + _CLEAR)
            }
            assert len(clear) == 1, "a change too close to the tolerance, take another case"
            assert self.num_iters[graph, problem] == sweeps
            # it was done if one sweep more would not have been made
            assert self.active[graph, problem] == float(clear != {sweeps})
            np.testing.assert_allclose(
                self.plan(graph, problem, epsilon), plan, rtol=1e-8, atol=1e-12
            )


@pytest.mark.parametrize("sizes", RAGGED_SIZES)
@pytest.mark.parametrize(("epsilon", "tolerance", "max_iters"), [(0.1, 0.1, 100), (0.5, 1e-6, 9)])
def test_sweeps_are_those_of_the_published_recipe(
    as_run: AsRun, sizes: tuple[int, ...], epsilon: float, tolerance: float, max_iters: int
) -> None:
    sweeps = Sweeps(random_graphs(sizes, seed=1), problems=3, seed=2)
    sweeps.run(as_run(log_domain_sweeps), epsilon, tolerance, max_iters)
    sweeps.check(epsilon, tolerance, max_iters)


@quick
@given(
    sizes=graph_sizes(),
    seed=st.integers(0, 10**6),
    problems=st.integers(0, 3),
    epsilon=st.sampled_from([0.05, 0.3, 2.0]),
    max_iters=st.integers(1, 30),
)
def test_sweeps_of_any_batch(
    sizes: tuple[int, ...], seed: int, problems: int, epsilon: float, max_iters: int
) -> None:
    sweeps = Sweeps(random_graphs(sizes, seed), problems, seed)
    sweeps.run(log_domain_sweeps, epsilon, 0.01, max_iters)
    sweeps.check(epsilon, 0.01, max_iters)


@pytest.mark.parametrize(("spread", "epsilon"), [(1e4, 0.1), (1e-9, 0.1), (1.0, 1e-4)])
def test_extreme_costs_neither_overflow_nor_lose_mass(
    as_run: AsRun, spread: float, epsilon: float
) -> None:
    """Costs of 1e5 epsilons, of none, and of 1e4."""
    sweeps = Sweeps(random_graphs((5, 1, 4), seed=3), problems=2, seed=3, spread=spread)
    sweeps.run(as_run(log_domain_sweeps), epsilon, 1e-3, 20)
    assert np.isfinite([sweeps.phi, sweeps.psi]).all()
    for (graph, problem), cost in sweeps.cost.items():
        columns = sweeps.plan(graph, problem, epsilon).sum(0)
        np.testing.assert_allclose(columns, 1 / len(cost), rtol=1e-6)


def test_isolated_nodes_keep_their_mass_in_two_sweeps(as_run: AsRun) -> None:
    """The second sweep finds that the first moved nothing any more."""
    sweeps = Sweeps(random_graphs((1, 1, 1), seed=4), problems=1, seed=4)
    sweeps.run(as_run(log_domain_sweeps), 0.1, 1e-9, 50)
    assert sweeps.num_iters.ravel().tolist() == [2, 2, 2]
    assert not sweeps.active.any()
    for graph in range(3):
        np.testing.assert_allclose(sweeps.plan(graph, 0, 0.1), [[1.0]], rtol=1e-12)


def test_an_empty_graph_is_done_at_once(as_run: AsRun) -> None:
    sweeps = Sweeps(random_graphs((0, 2), seed=5), problems=2, seed=5)
    sweeps.run(as_run(log_domain_sweeps), 0.1, 0.1, 50)
    assert sweeps.num_iters[0].tolist() == [1, 1]
    assert sweeps.active[0].tolist() == [0, 0]
