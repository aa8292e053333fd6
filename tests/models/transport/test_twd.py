from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.errors import InvalidInputError
from models.transport.problem import Support
from models.transport.twd import cosine_cost, twd, twd_on_support
from tests.conftest import assert_law
from tests.oracles_transport import (
    Array,
    dense_cost,
    dense_mask,
    linear_program,
    primal,
    published_sinkhorn,
)
from tests.strategies import GraphCase, graph_batches, quick

Options = dict[str, Any]
TIGHT: Options = {"epsilon": 0.5, "tolerance": 1e-11, "max_iters": 3000}
WAYS: list[Options] = [{}, {"debias": True}, {"solver": "exact"}]
ways = pytest.mark.parametrize("way", WAYS, ids=["sinkhorn", "debiased", "exact"])


def path(nodes: int = 5, width: int = 3, dtype: torch.dtype = torch.float64) -> GraphCase:
    h, h_ref = torch.randn(2, nodes, width, generator=torch.Generator().manual_seed(1), dtype=dtype)
    steps = torch.arange(nodes - 1)
    edges = torch.cat([torch.stack([steps, steps + 1]), torch.stack([steps + 1, steps])], 1)
    return GraphCase(h, h_ref, edges, torch.zeros(nodes, dtype=torch.int64), 1)


class TestCosineCost:
    @quick
    @given(graph_batches(), st.sampled_from([torch.float32, torch.float64]))
    def test_is_the_formula_and_in_range(self, case: GraphCase, dtype: torch.dtype) -> None:
        case = case.to(dtype)
        support = Support.from_graph(*case.graph)
        cost = cosine_cost(case.h, case.h_ref, support)
        expected = torch.tensor(dense_cost(case.h, case.h_ref))[support.rows, support.cols]
        torch.testing.assert_close(
            cost, expected.to(dtype), rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-14
        )
        assert ((cost >= 0) & (cost <= 1)).all()

    def test_equal_vectors_cost_nothing_and_opposite_ones_one(self) -> None:
        h = torch.randn(50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        support = Support.from_graph(torch.zeros(2, 0, dtype=torch.int64), torch.arange(50), 50)
        assert_law(cosine_cost(h, h, support), torch.zeros_like(h[:, 0]), 1e-15)
        assert_law(cosine_cost(h, -h, support), torch.ones_like(h[:, 0]), 1e-15)

    def test_zero_vectors(self) -> None:
        h = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 2.0], [1e-30, 0.0]], requires_grad=True)
        h_ref = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0], [3.0, 4.0]], requires_grad=True)
        support = Support.from_graph(torch.zeros(2, 0, dtype=torch.int64), torch.arange(4), 4)
        cost = cosine_cost(h, h_ref, support)
        torch.testing.assert_close(cost, torch.tensor([0.0, 0.5, 0.5, 0.5]))
        cost.sum().backward()
        assert not h.grad[[0, 1, 3]].any()
        assert h.grad.isfinite().all()
        assert h_ref.grad.isfinite().all()

    @pytest.mark.parametrize("length", [1e-15, 1.0, 1e15])
    def test_length_does_not_matter(self, length: float) -> None:
        case = path(dtype=torch.float32)
        support = Support.from_graph(*case.graph)
        torch.testing.assert_close(
            cosine_cost(length * case.h, case.h_ref, support),
            cosine_cost(case.h, case.h_ref, support),
        )

    def test_gradient(self) -> None:
        case = path()
        support = Support.from_graph(*case.graph)
        inputs = case.h.requires_grad_(), case.h_ref.requires_grad_()
        assert torch.autograd.gradcheck(lambda h, h_ref: cosine_cost(h, h_ref, support), inputs)


class TestValue:
    @quick
    @given(graph_batches())
    def test_sinkhorn_is_the_published_recipe(self, case: GraphCase) -> None:
        result = twd(*case.args)
        for graph in range(case.num_graphs):
            nodes = case.nodes(graph)
            value, plan, sweeps = published_sinkhorn(
                dense_cost(case.h[nodes], case.h_ref[nodes]), dense_mask(case, graph), 0.1, 0.1, 100
            )
            assert result.cost[graph].item() == pytest.approx(value, abs=1e-12)
            assert result.num_iters[graph] == sweeps
            assert result.plan[
                case.batch[Support.from_graph(*case.graph).rows] == graph
            ].sum().item() == pytest.approx(plan.sum())

    @quick
    @given(graph_batches())
    def test_exact_is_the_linear_program(self, case: GraphCase) -> None:
        cost = twd(*case.args, solver="exact").cost
        for graph in range(case.num_graphs):
            nodes = case.nodes(graph)
            expected = linear_program(
                dense_cost(case.h[nodes], case.h_ref[nodes]), dense_mask(case, graph)
            )
            assert cost[graph].item() == pytest.approx(expected, abs=1e-9)

    @settings(quick, max_examples=8)
    @given(graph_batches(symmetric=True, max_graphs=2))
    def test_debiased_is_three_published_solutions(self, case: GraphCase) -> None:
        cost = twd(*case.args, debias=True, **TIGHT).cost
        for graph in range(case.num_graphs):
            x, y = case.h[case.nodes(graph)], case.h_ref[case.nodes(graph)]
            terms = [
                regularized(dense_cost(*pair), dense_mask(case, graph))
                for pair in ((x, y), (x, x), (y, y))
            ]
            assert cost[graph].item() == pytest.approx(
                terms[0] - (terms[1] + terms[2]) / 2, abs=1e-6
            )

    @ways
    def test_support_at_hand_gives_the_same(self, way: Options) -> None:
        case = path()
        direct = twd(*case.args, **way)
        by_support = twd_on_support(case.h, case.h_ref, Support.from_graph(*case.graph), **way)
        for name in ("cost", "num_iters", "converged", "plan"):
            assert torch.equal(getattr(direct, name), getattr(by_support, name))

    def test_debias_changes_nothing_for_exact(self) -> None:
        args = path().args
        assert torch.equal(
            twd(*args, solver="exact", debias=True).cost, twd(*args, solver="exact").cost
        )

    def test_parameters_reach_the_solver(self) -> None:
        args = path(8).args
        result = twd(*args, tolerance=1e-9, max_iters=4, debias=True)
        assert (result.num_iters.item(), result.converged.item()) == (4, False)
        assert twd(*args, epsilon=1.0).cost > twd(*args, epsilon=0.1).cost

    def test_debiased_is_converged_when_all_three_terms_are(self) -> None:
        graphs = 20
        h, h_ref = torch.randn(
            2, 4 * graphs, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        edges = torch.cat([path(4).edge_index + 4 * graph for graph in range(graphs)], 1)
        support = Support.from_graph(edges, torch.arange(graphs).repeat_interleave(4), graphs)
        result = twd_on_support(h, h_ref, support, max_iters=3, debias=True)
        terms = [
            twd_on_support(x, y, support, max_iters=3)
            for x, y in ((h, h_ref), (h, h), (h_ref, h_ref))
        ]
        converged = torch.stack([term.converged for term in terms])
        num_iters = torch.stack([term.num_iters for term in terms])
        assert torch.equal(result.converged, converged.all(0))
        assert torch.equal(result.num_iters, num_iters.amax(0))
        assert not torch.equal(converged.all(0), converged.any(0))
        assert not torch.equal(num_iters.amax(0), num_iters.amin(0))

    def test_a_graph_without_nodes_costs_nothing(self) -> None:
        case = path()
        for way in WAYS:
            cost = twd(case.h, case.h_ref, case.edge_index, case.batch + 1, 3, **way).cost
            assert cost[[0, 2]].tolist() == [0, 0]


def regularized(cost: Array, mask: Array) -> float:
    return primal(cost, published_sinkhorn(cost, mask, 0.5, 1e-9, 3000)[1], 0.5)


class TestLaws:
    @quick
    @given(graph_batches(), st.sampled_from(WAYS))
    def test_batch_equals_single(self, case: GraphCase, way: Options) -> None:
        case = case.to(torch.float32)
        batched = twd(*case.args, **way)
        for graph in range(case.num_graphs):
            single = twd(*case.single_graph(graph).args, **way)
            torch.testing.assert_close(batched.cost[graph], single.cost[0], rtol=0, atol=1e-6)
            assert batched.num_iters[graph] == single.num_iters[0]
            assert batched.converged[graph] == single.converged[0]

    @quick
    @given(graph_batches(), st.sampled_from(WAYS), st.randoms(use_true_random=False))
    def test_relabelling_nodes_changes_nothing(
        self, case: GraphCase, way: Options, random: Random
    ) -> None:
        order = list(range(len(case.batch)))
        random.shuffle(order)
        assert_law(
            twd(*case.relabel(torch.tensor(order)).args, **way).cost,
            twd(*case.args, **way).cost,
            1e-12,
        )

    @quick
    @given(graph_batches(), st.sampled_from(WAYS))
    def test_repeated_edges_and_given_self_loops_change_nothing(
        self, case: GraphCase, way: Options
    ) -> None:
        loops = torch.arange(len(case.batch)).expand(2, -1)
        again = replace(
            case, edge_index=torch.cat([case.edge_index, loops, case.edge_index.flip(1)], 1)
        )
        assert torch.equal(twd(*again.args, **way).cost, twd(*case.args, **way).cost)

    @quick
    @given(graph_batches())
    def test_an_edgeless_graph_costs_its_mean_self_cost(self, case: GraphCase) -> None:
        case = replace(case, edge_index=case.edge_index[:, :0])
        for solver in ("sinkhorn", "exact"):
            cost = twd(*case.args, solver=solver).cost
            for graph in range(case.num_graphs):
                nodes = case.nodes(graph)
                assert cost[graph].item() == pytest.approx(
                    dense_cost(case.h[nodes], case.h_ref[nodes]).diagonal().mean(), abs=1e-12
                )

    @settings(quick, max_examples=8)
    @given(graph_batches(symmetric=True))
    def test_symmetric_on_symmetric_edges(self, case: GraphCase) -> None:
        for way in ({"solver": "exact"}, {"debias": True, **TIGHT}):
            there = twd(*case.args, **way).cost
            back = twd(case.h_ref, case.h, *case.graph, **way).cost
            torch.testing.assert_close(there, back, rtol=0, atol=1e-6)

    def test_not_symmetric_on_one_way_edges(self) -> None:
        h, h_ref = torch.eye(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64).roll(1, 0)
        cycle = torch.tensor([[0, 1, 2], [1, 2, 0]]), torch.zeros(3, dtype=torch.int64), 1
        assert twd(h, h_ref, *cycle, solver="exact").cost.item() == pytest.approx(0.0)
        assert twd(h_ref, h, *cycle, solver="exact").cost.item() == pytest.approx(0.5)

    @quick
    @given(graph_batches())
    def test_exact_is_below_sinkhorn_and_below_staying_put(self, case: GraphCase) -> None:
        support = Support.from_graph(*case.graph)
        cost = twd(*case.args, solver="exact").cost
        loops = support.rows == support.cols
        stay = torch.zeros(case.num_graphs, dtype=torch.float64).index_add(
            0, case.batch, cosine_cost(case.h, case.h_ref, support)[loops]
        )
        assert (cost <= stay / support.graph_sizes + 1e-12).all()
        assert (cost >= 0).all()

    @quick
    @given(graph_batches())
    def test_equal_inputs(self, case: GraphCase) -> None:
        assert not twd(case.h, case.h, *case.graph, debias=True).cost.any()
        cost = twd(case.h, case.h, *case.graph, solver="exact").cost
        torch.testing.assert_close(cost, torch.zeros_like(cost), rtol=0, atol=1e-14)

    def test_plain_sinkhorn_of_equal_inputs_is_above_zero(self) -> None:
        case = path()
        assert twd(case.h, case.h, *case.graph).cost > 0.001


class TestGradient:
    @pytest.mark.parametrize(
        "way", [{"debias": True, **TIGHT}, {"solver": "exact"}], ids=["debiased", "exact"]
    )
    def test_is_that_of_finite_differences(self, way: Options) -> None:
        case = path(3, 2)
        inputs = case.h.requires_grad_(), case.h_ref.requires_grad_()
        assert torch.autograd.gradcheck(
            lambda h, h_ref: twd(h, h_ref, *case.graph, **way).cost, inputs, atol=1e-6
        )

    @ways
    @quick
    @given(case=graph_batches())
    def test_is_finite_in_float32_with_zero_vectors(self, case: GraphCase, way: Options) -> None:
        case = case.to(torch.float32)
        h, h_ref = case.h.requires_grad_(), case.h_ref.requires_grad_()
        cost = twd(*case.args, **way).cost
        assert cost.isfinite().all()
        cost.sum().backward()
        assert h.grad.isfinite().all()
        assert h_ref.grad.isfinite().all()

    @ways
    def test_descent_moves_h_to_h_ref(self, way: Options) -> None:
        case = path(6)
        h = case.h.clone().requires_grad_()
        first = last = twd(h, case.h_ref, *case.graph, **way).cost
        for _ in range(30):
            (gradient,) = torch.autograd.grad(last.sum(), h)
            h = (h - 0.5 * gradient).detach().requires_grad_()
            last = twd(h, case.h_ref, *case.graph, **way).cost
        assert last < 0.7 * first


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"h": torch.zeros(4, 3)}, r"got h of shape \(4, 3\), expected \(5, d\)"),
            ({"h_ref": torch.zeros(5)}, r"got h_ref of shape \(5,\), expected \(5, d\)"),
            ({"h_ref": torch.zeros(5, 2)}, "got h_ref of width 2"),
            (
                {"h_ref": torch.zeros(5, 3, dtype=torch.float64)},
                "got h_ref of width 3, torch.float64",
            ),
            ({"h": torch.zeros(5, 3, dtype=torch.int64)}, "got h of torch.int64"),
            ({"h": torch.full((5, 3), torch.nan)}, "got embeddings with 5 rows of non-finite norm"),
            ({"h_ref": torch.full((5, 3), 1e30)}, "got embeddings with 5 rows of non-finite norm"),
            ({"edge_index": torch.tensor([[0], [5]])}, "got edge_index from 0 to 5"),
            ({"batch": torch.ones(5, dtype=torch.int64)}, "got batch from 1 to 1, expected 0 to 0"),
        ],
    )
    def test_bad_arrays(self, change: dict[str, Tensor], message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            twd(*replace(path(dtype=torch.float32), **change).args)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"solver": "simplex"}, "got solver 'simplex'"),
            ({"solver": "simplex", "debias": True}, "got solver 'simplex'"),
            ({"epsilon": 0.0}, "got epsilon 0.0"),
            ({"tolerance": -0.1}, "got tolerance -0.1"),
            ({"max_iters": 0}, "got max_iters 0"),
        ],
    )
    def test_bad_options(self, options: Options, message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            twd(*path().args, **options)
