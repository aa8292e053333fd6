import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.errors import InvalidInputError
from models.ops.segment import segment_sum
from models.transport.exact import exact
from models.transport.problem import SinkhornParams, Solver, Support
from models.transport.sinkhorn import sinkhorn
from models.transport.solve import solve_transport
from tests.oracles_transport import (
    Array,
    dense_mask,
    linear_program,
    pot_emd,
    primal,
    published_sinkhorn,
)
from tests.strategies import GraphCase, graph_batches, quick

Options = dict[str, Any]
TIGHT = SinkhornParams(epsilon=0.5, tolerance=1e-11, max_iters=3000)
BATCHED = SinkhornParams(epsilon=0.05, tolerance=0.01, max_iters=60)
RING = torch.tensor([[0, 1, 1, 2, 2, 3, 3, 0], [1, 0, 2, 1, 3, 2, 0, 3]])


def random_cost(support: Support, *trailing: int, seed: int = 0, low: float = 0.0) -> Tensor:
    uniform = torch.rand(
        len(support.rows),
        *trailing,
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64,
    )
    return low + (1 - low) * uniform


def one_graph(edges: Tensor, nodes: int) -> Support:
    return Support.from_graph(edges, torch.zeros(nodes, dtype=torch.int64), 1)


def dense(values: Tensor, support: Support, case: GraphCase, graph: int) -> Array:
    """Expand the entries of one graph to (n, n), 0 off the support."""
    whole = torch.zeros(support.num_nodes, support.num_nodes, dtype=values.dtype)
    whole[support.rows, support.cols] = values
    nodes = case.nodes(graph)
    return whole[nodes][:, nodes].numpy()


def marginals(plan: Tensor, support: Support) -> tuple[Tensor, Tensor]:
    """Compute the largest deviation of rows and columns of N_g * plan from a sum of 1."""
    size = support.graph_sizes[support.graph_of_node].view(-1, *[1] * (plan.dim() - 1))
    rows, cols = (
        segment_sum(plan, index, support.num_nodes) * size - 1
        for index in (support.rows, support.cols)
    )
    return rows.abs().max(), cols.abs().max()


class TestSupport:
    @quick
    @given(graph_batches())
    def test_is_the_edges_and_the_nodes_each_once_and_sorted(self, case: GraphCase) -> None:
        support = Support.from_graph(*case.graph)
        entries = list(zip(support.rows.tolist(), support.cols.tolist(), strict=True))
        expected = {tuple(edge) for edge in case.edge_index.T.tolist()} | {
            (node, node) for node in range(len(case.batch))
        }
        assert entries == sorted(expected)
        assert support.graph_of_entry.tolist() == case.batch[support.rows].tolist()
        assert support.graph_sizes.tolist() == case.batch.bincount().tolist()

    @quick
    @given(graph_batches())
    def test_reaches_as_far_as_its_order(self, case: GraphCase) -> None:
        """Against powers of the dense adjacency matrix; None is any two nodes of a graph."""
        step = torch.eye(len(case.batch))
        step[case.edge_index[0], case.edge_index[1]] = 1
        reach = torch.eye(len(case.batch))
        for order in range(4):
            support = Support.from_graph(*case.graph, order)
            assert torch.equal(torch.stack([support.rows, support.cols], 1), reach.nonzero())
            reach = reach @ step
        anywhere = Support.from_graph(*case.graph, None)
        assert torch.equal(
            torch.stack([anywhere.rows, anywhere.cols], 1),
            (case.batch[:, None] == case.batch).nonzero(),
        )
        with pytest.raises(InvalidInputError, match="got order -1, expected at least 0"):
            Support.from_graph(*case.graph, -1)

    @quick
    @given(graph_batches(), st.data())
    def test_restrict_is_the_support_of_the_graphs_that_stay(
        self, case: GraphCase, data: st.DataObject
    ) -> None:
        keep = torch.tensor(
            data.draw(st.lists(st.booleans(), min_size=case.num_graphs, max_size=case.num_graphs))
        )
        support = Support.from_graph(*case.graph)
        restricted, entries, nodes = support.restrict(keep)
        kept = torch.nonzero(nodes).flatten()
        assert torch.equal(kept[restricted.rows], support.rows[entries])
        assert torch.equal(kept[restricted.cols], support.cols[entries])
        assert torch.equal(
            torch.nonzero(keep).flatten()[restricted.graph_of_node], case.batch[nodes]
        )
        assert restricted.num_graphs == int(keep.sum())
        assert torch.equal(entries, keep[case.batch[support.rows]])

    @pytest.mark.parametrize(
        ("edges", "batch", "num_graphs", "message"),
        [
            (
                torch.tensor([[0, 1]]),
                torch.zeros(2, dtype=torch.int64),
                1,
                r"got edge_index of shape \(1, 2\).*expected \(2, E\)",
            ),
            (
                torch.tensor([[0.0], [1.0]]),
                torch.zeros(2, dtype=torch.int64),
                1,
                "got edge_index .*float32.*int64",
            ),
            (
                torch.tensor([[0], [1]]),
                torch.zeros(2, 1, dtype=torch.int64),
                1,
                r"got batch of shape \(2, 1\).*expected \(N,\)",
            ),
            (torch.tensor([[0], [1]]), torch.zeros(2), 1, "got batch .*float32.*int64"),
            (
                torch.tensor([[0], [2]]),
                torch.zeros(2, dtype=torch.int64),
                1,
                "got edge_index from 0 to 2, expected 0 to 1",
            ),
            (
                torch.tensor([[0], [-1]]),
                torch.zeros(2, dtype=torch.int64),
                1,
                "got edge_index from -1 to 0, expected 0 to 1",
            ),
            (
                torch.tensor([[0], [1]]),
                torch.tensor([0, 1]),
                1,
                "got batch from 0 to 1, expected 0 to 0",
            ),
            (torch.tensor([[0], [1]]), torch.tensor([0, 1]), 2, "got 1 edges between two graphs"),
        ],
    )
    def test_refuses(self, edges: Tensor, batch: Tensor, num_graphs: int, message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            Support.from_graph(edges, batch, num_graphs)


class TestParams:
    @pytest.mark.parametrize(
        "bad",
        [
            {"epsilon": 0.0},
            {"epsilon": math.nan},
            {"tolerance": -1.0},
            {"tolerance": math.inf},
            {"max_iters": 0},
        ],
    )
    def test_refuses(self, bad: Options) -> None:
        with pytest.raises(InvalidInputError, match=f"got {next(iter(bad))}"):
            SinkhornParams(**bad)


class TestSinkhorn:
    @quick
    @given(
        graph_batches(),
        st.sampled_from([0.02, 0.1, 1.0]),
        st.sampled_from([0.1, 1e-3]),
        st.sampled_from([1, 3, 100]),
    )
    def test_is_the_published_recipe_graph_by_graph(
        self, case: GraphCase, epsilon: float, tolerance: float, max_iters: int
    ) -> None:
        support = Support.from_graph(*case.graph)
        cost = random_cost(support)
        result = sinkhorn(cost, support, SinkhornParams(epsilon, tolerance, max_iters))
        for graph in range(case.num_graphs):
            problem = dense(cost, support, case, graph), dense_mask(case, graph)
            value, plan, sweeps = published_sinkhorn(*problem, epsilon, tolerance, max_iters)
            assert result.num_iters[graph] == sweeps
            assert result.cost[graph].item() == pytest.approx(value, abs=1e-12)
            np.testing.assert_allclose(dense(result.plan, support, case, graph), plan, atol=1e-12)

    @quick
    @given(graph_batches(symmetric=True))
    def test_converged_plan_is_feasible_and_its_regularized_cost_is_the_primal(
        self, case: GraphCase
    ) -> None:
        support = Support.from_graph(*case.graph)
        cost = random_cost(support)
        result = sinkhorn(cost, support, TIGHT)
        assert result.converged.all()
        assert max(marginals(result.plan, support)) < 1e-9
        for graph in range(case.num_graphs):
            expected = primal(
                dense(cost, support, case, graph),
                dense(result.plan, support, case, graph),
                TIGHT.epsilon,
            )
            assert result.regularized_cost[graph].item() == pytest.approx(expected, abs=1e-9)

    @quick
    @given(graph_batches())
    def test_columns_are_exact_however_early_it_stops(self, case: GraphCase) -> None:
        support = Support.from_graph(*case.graph)
        result = sinkhorn(random_cost(support), support, SinkhornParams(max_iters=1))
        assert marginals(result.plan, support)[1] < 1e-12

    def test_rows_are_not_exact_when_it_stops_early(self) -> None:
        support = one_graph(RING, 4)
        assert (
            marginals(
                sinkhorn(random_cost(support), support, SinkhornParams(max_iters=1)).plan, support
            )[0]
            > 1e-3
        )

    def test_potentials_give_the_plan(self) -> None:
        support = one_graph(RING, 4)
        cost = random_cost(support, 3)
        result = sinkhorn(cost, support, BATCHED)
        f, g = result.potentials
        torch.testing.assert_close(
            ((f[support.rows] + g[support.cols] - cost) / BATCHED.epsilon).exp(), result.plan
        )

    def test_says_when_it_did_not_converge(self) -> None:
        support = one_graph(RING, 4)
        cost = random_cost(support)
        short = sinkhorn(cost, support, SinkhornParams(tolerance=1e-9, max_iters=3))
        assert (short.num_iters.item(), short.converged.item()) == (3, False)
        long = sinkhorn(cost, support, SinkhornParams(tolerance=1e-9, max_iters=1000))
        assert 3 < long.num_iters.item() < 1000
        assert long.converged.item()

    def test_regularized_cost_before_convergence_is_a_lower_bound_and_close(self) -> None:
        support = one_graph(RING, 4)
        cost = random_cost(support)
        optimum = sinkhorn(
            cost, support, SinkhornParams(tolerance=1e-9, max_iters=3000)
        ).regularized_cost
        early = sinkhorn(cost, support, SinkhornParams(max_iters=2)).regularized_cost
        assert 0 < optimum - early < 0.01

    @quick
    @given(graph_batches())
    def test_batch_equals_single(self, case: GraphCase) -> None:
        support = Support.from_graph(*case.graph)
        cost = random_cost(support, 3)
        batched = sinkhorn(cost, support, BATCHED)
        for graph in range(case.num_graphs):
            mine = support.graph_of_entry == graph
            single = sinkhorn(
                cost[mine], Support.from_graph(*case.single_graph(graph).graph), BATCHED
            )
            assert torch.equal(batched.num_iters[graph], single.num_iters[0])
            assert torch.equal(batched.converged[graph], single.converged[0])
            for name in ("cost", "regularized_cost"):
                torch.testing.assert_close(
                    getattr(batched, name)[graph], getattr(single, name)[0], rtol=1e-12, atol=1e-12
                )
            torch.testing.assert_close(batched.plan[mine], single.plan, rtol=1e-12, atol=1e-12)

    def test_a_slow_graph_neither_changes_nor_is_changed_by_the_fast_ones(self) -> None:
        graphs = 9  # enough that the batch is restricted twice
        edges = torch.cat([RING + 4 * graph for graph in range(graphs)], 1)
        support = Support.from_graph(edges, torch.arange(graphs).repeat_interleave(4), graphs)
        scale = torch.logspace(-3, 1, graphs, dtype=torch.float64)[support.graph_of_entry]
        cost = scale * random_cost(support)
        params = SinkhornParams(tolerance=1e-6, max_iters=500)
        batched = sinkhorn(cost, support, params)
        assert batched.num_iters.max() > 3 * batched.num_iters.min()
        for graph in range(graphs):
            single = sinkhorn(cost[support.graph_of_entry == graph], one_graph(RING, 4), params)
            assert batched.num_iters[graph] == single.num_iters[0]
            assert torch.equal(batched.cost[graph], single.cost[0])

    @quick
    @given(graph_batches(max_graphs=2))
    def test_trailing_dimensions_equal_a_loop(self, case: GraphCase) -> None:
        support = Support.from_graph(*case.graph)
        cost = random_cost(support, 2, 3)
        for solver in ("sinkhorn", "exact"):
            whole = solve_transport(cost, support, solver=solver, params=BATCHED)
            for i, j in np.ndindex(2, 3):
                single = solve_transport(cost[:, i, j], support, solver=solver, params=BATCHED)
                assert torch.equal(whole.num_iters[:, i, j], single.num_iters)
                for name in ("cost", "regularized_cost", "plan"):
                    torch.testing.assert_close(
                        getattr(whole, name)[..., i, j],
                        getattr(single, name),
                        rtol=1e-12,
                        atol=1e-12,
                    )

    @settings(quick, max_examples=6)
    @given(graph_batches(symmetric=True, max_graphs=2, max_nodes=4))
    def test_regularized_cost_has_the_gradient_of_finite_differences(self, case: GraphCase) -> None:
        support = Support.from_graph(*case.graph)
        cost = random_cost(support).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda c: sinkhorn(c, support, TIGHT).regularized_cost, cost, atol=1e-6
        )

    def test_both_costs_have_the_gradient_plan(self) -> None:
        support = one_graph(RING, 4)
        cost = random_cost(support, 2).requires_grad_()
        result = sinkhorn(cost, support)
        for value in (result.cost, result.regularized_cost):
            torch.testing.assert_close(
                torch.autograd.grad(value.sum(), cost, retain_graph=True)[0],
                result.plan,
                rtol=0,
                atol=0,
            )
        assert not result.plan.requires_grad

    def test_small_epsilon_approaches_the_exact_cost(self) -> None:
        support = one_graph(RING, 4)
        cost = random_cost(support, 20)
        before, optimum = torch.inf, exact(cost, support).cost
        for epsilon in (1.0, 0.1, 0.02):
            result = sinkhorn(cost, support, SinkhornParams(epsilon, 1e-6, 1500))
            gap = result.cost - optimum
            assert ((gap > -1e-5) & (gap < before) & (gap < epsilon * math.log(4))).all()
            assert ((result.regularized_cost - optimum).abs() < epsilon * 2 * math.log(4)).all()
            before = gap + 1e-5

    def test_tiny_epsilon_in_float32_neither_overflows_nor_underflows(self) -> None:
        support = one_graph(RING, 4)
        cost = random_cost(support, 5).float()  # exp(-cost / epsilon) is 0
        result = sinkhorn(cost, support, SinkhornParams(1e-4, 1e-6, 200))
        assert result.plan.isfinite().all()
        assert marginals(result.plan, support)[1] < 1e-2  # kernel values of 1e4 in float32
        optimum = exact(cost, support).cost
        assert (
            (result.regularized_cost < optimum + 1e-3) & (result.regularized_cost > optimum - 0.1)
        ).all()

    def test_an_edge_that_no_feasible_plan_can_use_gets_little_mass(self) -> None:
        support = one_graph(torch.tensor([[0], [1]]), 2)
        result = sinkhorn(
            torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64),
            support,
            SinkhornParams(0.1, 1e-5, 400),
        )
        assert 0 < result.plan[1] < 0.01
        assert exact(torch.tensor([0.5, 0.0, 0.5]), support).plan.tolist() == [0.5, 0.0, 0.5]

    def test_leaves_its_input_alone(self) -> None:
        support = one_graph(RING, 4)
        cost = random_cost(support)
        before = cost.clone()
        sinkhorn(cost, support)
        exact(cost, support)
        assert torch.equal(cost, before)


class TestExact:
    @quick
    @given(graph_batches(), st.sampled_from(["real", "ties", "signed"]))
    def test_is_the_linear_program_and_pot(self, case: GraphCase, kind: str) -> None:
        support = Support.from_graph(*case.graph)
        cost = random_cost(support, low=-1.0 if kind == "signed" else 0.0)
        cost = (3 * cost).round() / 3 if kind == "ties" else cost
        result = exact(cost, support)
        for graph in range(case.num_graphs):
            problem = dense(cost, support, case, graph), dense_mask(case, graph)
            assert result.cost[graph].item() == pytest.approx(linear_program(*problem), abs=1e-9)
            assert result.cost[graph].item() == pytest.approx(pot_emd(*problem), abs=1e-9)

    @quick
    @given(graph_batches())
    def test_plan_is_a_matching(self, case: GraphCase) -> None:
        support = Support.from_graph(*case.graph)
        result = exact(random_cost(support, 2), support)
        assert max(marginals(result.plan, support)) < 1e-12
        assert int((result.plan > 0).sum()) == 2 * support.num_nodes
        assert result.converged.all()
        assert not result.num_iters.any()
        assert torch.equal(result.regularized_cost, result.cost)

    @quick
    @given(graph_batches(max_graphs=2, max_nodes=4))
    def test_gradient_is_that_of_finite_differences(self, case: GraphCase) -> None:
        support = Support.from_graph(*case.graph)
        assert torch.autograd.gradcheck(
            lambda c: exact(c, support).cost, random_cost(support).requires_grad_()
        )

    @pytest.mark.parametrize("unit", [1e-20, 1.0, 1e20])
    def test_does_not_depend_on_the_unit_of_cost(self, unit: float) -> None:
        support = one_graph(RING, 4)
        cost = random_cost(support, 8)
        assert torch.equal(exact(unit * cost, support).plan, exact(cost, support).plan)

    def test_equal_and_zero_costs(self) -> None:
        support = one_graph(RING, 4)
        for value in (0.0, 0.7):
            assert exact(
                torch.full((12,), value, dtype=torch.float64), support
            ).cost.item() == pytest.approx(value)

    def test_no_cost_is_read_as_a_missing_edge(self) -> None:
        support = one_graph(RING, 4)
        loops = (support.rows == support.cols).double()
        for offset in (-2.0, -1.0, 0.0, 1.0):
            assert exact(offset + 1 - loops, support).cost.item() == pytest.approx(offset)

    def test_the_size_of_a_call_to_scipy_changes_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        support = one_graph(RING, 4)
        cost = random_cost(support, 7)
        together = exact(cost, support).plan
        for rows in (1, 8, 12):
            monkeypatch.setattr("models.transport.exact.MAX_BLOCK_ROWS", rows)
            assert torch.equal(exact(cost, support).plan, together)


@pytest.mark.parametrize("solver", ["sinkhorn", "exact"])
class TestBothSolvers:
    def test_single_nodes_cost_their_own_cost(self, solver: Solver) -> None:
        support = Support.from_graph(torch.zeros(2, 0, dtype=torch.int64), torch.arange(5), 5)
        cost = random_cost(support, 2)
        torch.testing.assert_close(solve_transport(cost, support, solver=solver).cost, cost)

    def test_empty_graphs_cost_nothing(self, solver: Solver) -> None:
        support = Support.from_graph(RING, torch.full((4,), 1), 3)
        result = solve_transport(random_cost(support), support, solver=solver)
        assert result.cost[[0, 2]].tolist() == result.regularized_cost[[0, 2]].tolist() == [0, 0]
        assert result.cost[1] > 0
        assert result.converged.all()

    @pytest.mark.parametrize(("nodes", "trailing"), [(0, ()), (0, (2,)), (4, (0,)), (4, (2, 0))])
    def test_nothing_to_solve(self, solver: Solver, nodes: int, trailing: tuple[int, ...]) -> None:
        support = Support.from_graph(RING[:, : 2 * nodes], torch.zeros(nodes, dtype=torch.int64), 1)
        result = solve_transport(random_cost(support, *trailing), support, solver=solver)
        assert result.cost.shape == result.num_iters.shape == (1, *trailing)
        assert result.plan.shape == (len(support.rows), *trailing)

    @pytest.mark.parametrize(
        ("cost", "message"),
        [
            (torch.zeros(()), r"got cost of shape \(\), expected \(12, ...\)"),
            (torch.zeros(11, 12), r"got cost of shape \(11, 12\), expected \(12, ...\)"),
            (torch.zeros(12, dtype=torch.float16), "got cost of torch.float16"),
            (
                torch.tensor([math.nan] * 5 + [math.inf] * 2 + [0.0] * 5),
                "got cost with 7 non-finite values",
            ),
        ],
    )
    def test_refuses(self, solver: Solver, cost: Tensor, message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            solve_transport(cost, one_graph(RING, 4), solver=solver)


def test_solve_refuses_an_unknown_solver() -> None:
    support = one_graph(RING, 4)
    with pytest.raises(
        InvalidInputError, match=r"got solver 'simplex', expected one of \('sinkhorn', 'exact'\)"
    ):
        solve_transport(random_cost(support), support, solver="simplex")
