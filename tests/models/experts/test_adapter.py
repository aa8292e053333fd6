import pytest
import torch

from models.data.batch import GraphBatch
from models.experts.adapter import TaskAdapters, apply_norm, batch_statistics, trace
from models.experts.bank import AdapterBank, NodeAdapterBank
from tests import oracles
from tests.conftest import pico_config, random_backbone, random_experts


def test_starts_at_subtracting_nothing(molecules: GraphBatch) -> None:
    backbone, adapters = random_backbone(pico_config()), TaskAdapters(pico_config(), rank=4)
    untouched = trace(
        backbone,
        molecules,
        None,
        lambda layer, h: apply_norm(backbone, layer, h, torch.zeros(16), torch.ones(16)),
    )
    torch.testing.assert_close(
        adapters(backbone, molecules).graph_embedding, untouched.graph_embedding
    )


def test_adapter_is_subtracted_after_the_convolution_and_after_the_readout(
    molecules: GraphBatch,
) -> None:
    backbone = random_backbone(pico_config()).double()
    adapters = next(iter(random_experts(pico_config()).values())).adapters.double()
    seen: dict[int, torch.Tensor] = {}

    def by_hand(site: int, h: torch.Tensor) -> torch.Tensor:
        seen[site] = h - oracles.adapter(h, adapters.sites[site].down, adapters.sites[site].up)  # type: ignore[arg-type]
        return seen[site]

    def norm(layer: int, h: torch.Tensor) -> torch.Tensor:
        state = backbone.batch_norms[layer]
        return (h - adapters.norm_mean[layer]) / (
            adapters.norm_var[layer] + 1e-5
        ).sqrt() * state.weight + state.bias

    trace(backbone, molecules, by_hand, norm)
    outputs = adapters(backbone, molecules)
    for layer, convolution in enumerate(outputs.convolutions):
        torch.testing.assert_close(convolution, seen[layer])
    torch.testing.assert_close(outputs.graph_embedding, seen[3])


def test_stored_batchnorm_equals_torch(molecules: GraphBatch) -> None:
    backbone = random_backbone(pico_config())
    norm = backbone.batch_norms[1]
    h = torch.randn(50, 16)
    torch.testing.assert_close(
        apply_norm(backbone, 1, h, norm.running_mean, norm.running_var), norm(h)
    )  # type: ignore[arg-type]


def test_batch_statistics_normalise_as_torch_does_in_training() -> None:
    backbone = random_backbone(pico_config())
    h = torch.randn(50, 16)
    expected = backbone.batch_norms[0].train()(h)
    torch.testing.assert_close(apply_norm(backbone, 0, h, *batch_statistics(h)), expected)


@pytest.mark.parametrize("site", range(4))
def test_bank_equals_the_single_adapters(site: int) -> None:
    experts = [expert.adapters for expert in random_experts(pico_config()).values()]
    bank = AdapterBank([expert.sites[site] for expert in experts])  # type: ignore[misc]
    h, weights = torch.randn(7, 2, 16), torch.rand(7, 2, 3)
    outputs = torch.stack([expert.sites[site](h) for expert in experts], dim=2)
    torch.testing.assert_close(
        bank.mix(bank.project(h), weights), (outputs * weights.unsqueeze(-1)).sum(2)
    )
    torch.testing.assert_close(
        bank.target_outputs(h, torch.tensor([2, 0])),
        torch.stack([outputs[:, 0, 2], outputs[:, 1, 0]], dim=1),
    )


@pytest.mark.parametrize("streams", [1, 2])
def test_fused_parameters_are_projections_by_all_experts_weighed(streams: int) -> None:
    """The product with an averaged matrix is the average of the products: so all rows can be
    projected by all experts, which is no faster."""
    experts = random_experts(pico_config()).values()
    bank = AdapterBank([expert.adapters.node_adapters[1] for expert in experts])
    h, weights, sizes = torch.randn(7, streams, 16), torch.rand(3, 2, 3), [4, 0, 3]
    by_row = weights.repeat_interleave(torch.tensor(sizes), 0)
    z = torch.einsum("ntd,dkr,ntk->ntr", h.expand(-1, 2, -1), bank.down, by_row).relu()
    torch.testing.assert_close(
        bank.fuse(h, weights, sizes), torch.einsum("ntr,krd,ntk->ntd", z, bank.up, by_row)
    )


def test_gram_gives_the_inner_products_of_outputs() -> None:
    experts = [expert.adapters for expert in random_experts(pico_config()).values()]
    bank = NodeAdapterBank([expert.node_adapters[1] for expert in experts])
    h = torch.randn(5, 16)
    z = bank.project(h.unsqueeze(1))[:, 0]
    for i in range(3):
        for j in range(3):
            products = torch.einsum("nr,rq,mq->nm", z[:, i], bank.gram[i, j], z[:, j])
            torch.testing.assert_close(
                products, experts[i].sites[1](h) @ experts[j].sites[1](h).T, rtol=1e-4, atol=1e-5
            )
