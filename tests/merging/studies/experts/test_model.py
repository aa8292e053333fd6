"""Competence, routing and merging of experts: oracles and laws."""

from dataclasses import replace

import pytest
import torch

from merging.studies.experts.model import ExpertBank, competence, edge_loss, merge_experts, route
from merging.studies.experts.training import distillation
from models.data.feature_graph import FeatureGraph, collate_features
from models.errors import CheckpointError, InvalidInputError
from models.networks.pyg import GraphNetwork
from tests.conftest import assert_law
from tests.merging.studies.experts.pico import NETWORK, batch, random_bank, ring


@pytest.mark.parametrize("k", [1, 2, 4])
def test_alpha_sums_to_one_and_is_zero_outside_the_top_k(k: int) -> None:
    psi = torch.tensor([-2.0, -0.5, -1.0, -0.5])
    alpha = route(psi, k)
    assert alpha.sum().item() == pytest.approx(1)
    assert (alpha > 0).sum() == k
    assert alpha[alpha > 0].min() > 0
    assert set(alpha.nonzero().flatten().tolist()) == set([1, 3, 2, 0][:k])
    torch.testing.assert_close(route(psi - 100, k), alpha)


@pytest.mark.parametrize(("psi", "k"), [([0.0, 1.0], 3), ([0.0, 1.0], 0), ([0.0, float("nan")], 1)])
def test_route_refuses(psi: list[float], k: int) -> None:
    with pytest.raises(InvalidInputError, match="expected k from 1 to 2 and finite"):
        route(torch.tensor(psi), k)


def test_one_expert_alone_is_top1_ensemble_and_merged() -> None:
    bank, graphs = random_bank(), batch()
    psi = bank.competence(graphs).mean(1)
    alpha = route(psi, 1)
    alone = bank.experts[int(psi.argmax())](graphs)
    assert torch.equal(bank.merged(alpha, graphs), alone)
    assert torch.equal(bank.ensemble(alpha, graphs), alone)


def test_identical_experts_merge_into_themselves() -> None:
    bank, graphs = ExpertBank(NETWORK, ["a", "b", "c"], 3).requires_grad_(False), batch()
    alpha = torch.tensor([0.2, 0.5, 0.3])
    torch.testing.assert_close(bank.merged(alpha, graphs), bank.ensemble(alpha, graphs))
    assert float(distillation(bank, graphs, 2)) < 1e-12


def test_linear_experts_merge_exactly_and_others_do_not() -> None:
    # no relu follows the last layer
    linear, graphs = random_bank(NETWORK.model_copy(update={"num_layers": 1})), batch()
    alpha = torch.tensor([0.4, 0.0, 0.35, 0.25])
    torch.testing.assert_close(linear.merged(alpha, graphs), linear.ensemble(alpha, graphs))
    deep = random_bank()
    assert (deep.merged(alpha, graphs) - deep.ensemble(alpha, graphs)).abs().max() > 0.01


def test_merging_is_the_weighted_sum_and_refuses_what_does_not_fit() -> None:
    states = [
        {"w": torch.tensor([1.0, 2.0])},
        {"w": torch.tensor([3.0, 5.0])},
        {"w": torch.tensor([float("nan"), 0.0])},
    ]
    assert torch.equal(
        merge_experts(states, torch.tensor([0.25, 0.75, 0.0]))["w"], torch.tensor([2.5, 4.25])
    )
    with pytest.raises(CheckpointError, match="names or shapes"):
        merge_experts([states[0], {"w": torch.ones(3)}], torch.tensor([0.5, 0.5]))
    for alpha in (torch.tensor([1.0]), torch.zeros(3)):
        with pytest.raises(InvalidInputError, match="alpha"):
            merge_experts(states, alpha)


def test_competence_is_of_the_graph_alone() -> None:
    expert = random_bank().experts[0].double()
    graphs = [replace(graph, x=graph.x.double()) for graph in (ring(6, 1), ring(17, 2), ring(4, 3))]
    alone = torch.cat([competence(expert, collate_features([graph])) for graph in graphs])
    torch.manual_seed(5)
    together = competence(expert, collate_features(graphs[::-1])).flip(0)
    assert_law(together, alone, 1e-12)
    order = torch.randperm(17)
    turned = FeatureGraph(graphs[1].x[order], order.argsort()[graphs[1].edge_index])
    assert_law(competence(expert, collate_features([turned])), alone[1:2], 1e-12)


def test_edge_loss_is_the_cross_entropy_written_out() -> None:
    graph = ring(7, 4)
    h = torch.randn((7, 3), generator=torch.Generator().manual_seed(0))
    unit = h / h.norm(dim=1, keepdim=True)
    slow = []
    for i, j in graph.edge_index.T.tolist():
        others = [k for k in range(7) if k != i]
        scores = torch.stack([unit[i] @ unit[k] / 0.2 for k in others])
        slow.append(-scores.log_softmax(0)[others.index(j)])
    torch.testing.assert_close(
        edge_loss(h, collate_features([graph])), torch.stack(slow).mean()[None]
    )


def test_a_graph_without_edges_counts_nothing_and_has_a_gradient() -> None:
    single = FeatureGraph(torch.ones(1, 5), torch.empty((2, 0), dtype=torch.int64))
    graphs = collate_features([single, ring(5, 1)])
    h = torch.randn((6, 4), requires_grad=True)
    loss = edge_loss(h, graphs)
    loss.sum().backward()
    assert loss[0] == 0
    torch.testing.assert_close(loss[1:], edge_loss(h[1:], collate_features([ring(5, 1)])))
    assert h.grad is not None
    assert h.grad[0].tolist() == [0, 0, 0, 0]
    assert bool(h.grad.isfinite().all())
    assert bool((h.grad[1:].abs().sum(1) > 0).all())


def test_without_leaves_one_expert_out() -> None:
    bank, graphs = random_bank(), batch()
    others = bank.without("expert1")
    assert others.names == ("expert0", "expert2", "expert3")
    assert torch.equal(others.competence(graphs), bank.competence(graphs)[[0, 2, 3]])


def test_an_expert_is_a_graph_network() -> None:
    assert isinstance(random_bank().experts[0], GraphNetwork)
