import pytest
import torch

from models.data.batch import GraphBatch
from models.experts.bank import NodeAdapterBank
from models.experts.router import RouterConfig, graph_distances, node_distances, routing_weights
from models.transport.problem import Support
from models.transport.twd import twd_on_support
from tests.conftest import pico_config, random_experts

CONFIGS = {
    "sinkhorn": RouterConfig(tolerance=1e-6, max_iters=500),
    "exact": RouterConfig(solver="exact"),
    "debias": RouterConfig(tolerance=1e-6, max_iters=500, debias=True),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_rank_space_distances_equal_twd_of_full_outputs(name: str, molecules: GraphBatch) -> None:
    config = CONFIGS[name]
    experts = [expert.adapters for expert in random_experts(pico_config()).values()]
    bank = NodeAdapterBank([adapters.node_adapters[1] for adapters in experts])
    support = Support.from_graph(molecules.edge_index, molecules.batch, molecules.num_graphs)
    h = torch.randn(molecules.num_nodes, 2, 16, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([2, 0])
    distances = node_distances(bank.project(h), bank.gram, targets, support, config)
    for t, k in enumerate(targets.tolist()):
        outputs = [expert.sites[1](h[:, t]).detach() for expert in experts]
        for i, output in enumerate(outputs):
            expected = twd_on_support(
                output,
                outputs[k],
                support,
                solver=config.solver,
                tolerance=config.tolerance,
                max_iters=config.max_iters,
                debias=config.debias,
            )
            torch.testing.assert_close(distances[:, t, i], expected.cost, rtol=1e-3, atol=2e-5)


def test_own_expert_is_nearest_under_exact_and_debiased(molecules: GraphBatch) -> None:
    experts = random_experts(pico_config()).values()
    bank = NodeAdapterBank([expert.adapters.node_adapters[0] for expert in experts])
    support = Support.from_graph(molecules.edge_index, molecules.batch, molecules.num_graphs)
    z = bank.project(torch.randn(molecules.num_nodes, 3, 16))
    for name in ("exact", "debias"):
        distances = node_distances(z, bank.gram, torch.arange(3), support, CONFIGS[name])
        torch.testing.assert_close(
            distances.diagonal(dim1=1, dim2=2),
            torch.zeros(molecules.num_graphs, 3),
            atol=1e-5,
            rtol=0,
        )


def test_silent_adapters_are_equal_and_far_from_others(molecules: GraphBatch) -> None:
    """An adapter whose relu is off everywhere gives zero vectors: cost 0 to another silent one, 1/2
    to any other, never NaN."""
    experts = random_experts(pico_config()).values()
    bank = NodeAdapterBank([expert.adapters.node_adapters[0] for expert in experts])
    support = Support.from_graph(molecules.edge_index, molecules.batch, molecules.num_graphs)
    z = torch.rand(molecules.num_nodes, 1, 3, 4)
    z[:, :, :2] = 0
    distances = node_distances(
        z, bank.gram, torch.tensor([0]), support, RouterConfig(solver="exact")
    )
    torch.testing.assert_close(
        distances[:, 0], torch.tensor([0.0, 0.0, 0.5]).expand(molecules.num_graphs, 3)
    )


def test_graph_distances_are_mean_absolute_differences() -> None:
    outputs = torch.randn(4, 2, 3, 16)
    distances = graph_distances(outputs, torch.tensor([1, 2]))
    for g in range(4):
        for t, k in enumerate((1, 2)):
            for i in range(3):
                expected = (
                    sum(
                        abs(float(a - b))
                        for a, b in zip(outputs[g, t, i], outputs[g, t, k], strict=True)
                    )
                    / 16
                )
                assert float(distances[g, t, i]) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_weights_are_a_softmax_of_minus_distance() -> None:
    distances = torch.tensor([[[0.0, 0.03, 0.06]]])
    weights = routing_weights(distances, temperature=0.03)
    torch.testing.assert_close(
        weights, torch.tensor([[[1.0, 0.36787944, 0.13533528]]]) / 1.50321472
    )


def test_top_k_drops_the_far_ones_and_still_sums_to_one() -> None:
    distances = torch.tensor([[[0.2, 0.0, 0.1, 0.3]]])
    weights = routing_weights(distances, temperature=0.1, top_k=2)
    assert weights[0, 0, 0] == weights[0, 0, 3] == 0
    assert float(weights.sum()) == pytest.approx(1)
    torch.testing.assert_close(
        routing_weights(distances, 0.1, top_k=1), torch.tensor([[[0.0, 1.0, 0.0, 0.0]]])
    )
    torch.testing.assert_close(
        routing_weights(distances, 0.1, top_k=9), routing_weights(distances, 0.1)
    )


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0}, {"top_k": 0}, {"solver": "lp"}, {"unknown": 1}]
)
def test_options_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RouterConfig.model_validate(wrong)
