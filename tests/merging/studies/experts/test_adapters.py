"""Graph adapters as experts: as they are served, KDEM, and PPEM."""

from typing import cast

import pytest
import torch
from torch import Tensor, nn

from merging.studies.experts.adapters import (
    AdapterExperts,
    TiedStream,
    distillation,
    ensemble,
    share_draw,
)
from merging.studies.experts.config import VariantConfig
from merging.training.joint_alignment import SharedStream
from models.data.batch import GraphBatch
from models.data.molecule import collate
from models.data.smiles import featurize
from models.experts.adapter import Adapter
from models.experts.bank import AdapterBank
from models.experts.router import RouterConfig, graph_distances, routing_weights
from tests.conftest import pico_config, random_backbone
from tests.merging.conftest import stereo_corpus

TASKS = ("a", "b", "c", "d", "e")
ROUTER = RouterConfig(top_k=3, graph_temperature=0.1)


def stream(drawn: bool = True) -> SharedStream:
    torch.manual_seed(3)
    heads = {task: nn.Linear(16, 1) for task in TASKS}
    made = SharedStream(random_backbone(pico_config()), heads, 4)
    for adapter in made.adapters:
        if drawn:
            nn.init.normal_(adapter.get_parameter("up"))
    return made


def molecules() -> GraphBatch:
    return collate([featurize(smiles).graph for smiles in stereo_corpus()[:8]])


def readout() -> Tensor:
    return torch.randn(7, 16, generator=torch.Generator().manual_seed(1))


def experts() -> AdapterExperts:
    return AdapterExperts.of(stream().requires_grad_(False), ROUTER)


def test_ensemble_and_merged_expert_are_those_that_are_served() -> None:
    served = AdapterBank([cast(Adapter, adapter) for adapter in stream().adapters])
    found, g, task = experts(), readout(), 2
    z = served.project(g[:, None])
    outputs = torch.einsum("gtkr,krd->gtkd", z, served.up)
    distances = graph_distances(outputs, torch.tensor([task]))
    weights = routing_weights(distances, ROUTER.graph_temperature, ROUTER.top_k)
    ours = found.weights(found.distances(found.outputs(g), task), task)
    torch.testing.assert_close(ours, weights[:, 0])
    averaged = ensemble(found.outputs(g), ours)
    torch.testing.assert_close(averaged, served.mix(z, weights)[:, 0])
    fused = served.fuse(g[:, None], weights, [1] * len(g))
    torch.testing.assert_close(found.merged(g, ours), fused[:, 0])


def test_strangers_leave_the_own_expert_out() -> None:
    found, task = experts(), 1
    distances = found.distances(found.outputs(readout()), task)
    weights = found.weights(distances, task, strangers=True)
    assert not weights[:, task].any()
    torch.testing.assert_close(weights.sum(1), torch.ones(7))
    assert ((weights > 0).sum(1) == ROUTER.top_k).all()
    assert (found.weights(distances, task)[:, task] > 0).all()


def test_kdem_brings_the_merged_expert_to_the_ensemble() -> None:
    trained, g = stream(), readout()
    optimizer = torch.optim.Adam(trained.adapters.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        loss = distillation(AdapterExperts.of(trained, ROUTER), g, 0)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3


def test_kdem_is_relative_and_0_where_nothing_is_subtracted() -> None:
    g, found = readout(), experts()
    alike = AdapterExperts(found.down, found.up * 1e-3, RouterConfig(graph_temperature=1e6))
    plain = AdapterExperts(found.down, found.up, RouterConfig(graph_temperature=1e6))
    torch.testing.assert_close(distillation(alike, g, 0), distillation(plain, g, 0))
    assert distillation(AdapterExperts.of(stream(drawn=False), ROUTER), g, 0) == 0


def tied(**values: float) -> TiedStream:
    made = TiedStream.of(stream(), VariantConfig.model_validate(values), ROUTER)
    made(molecules())
    return made


def test_kdem_counts_every_so_many_steps_and_reaches_adapters_only() -> None:
    made = tied(gamma=0.5, distil_every=4)
    assert [made.own_loss(step) for step in (1, 2, 3)] == [0, 0, 0]
    loss = made.own_loss(8)
    assert isinstance(loss, Tensor)
    # The second time it looks at the third task.
    task, found = 2, AdapterExperts.of(made, ROUTER)
    expected = 0.5 * distillation(found, made(molecules()).readout.detach(), task)
    torch.testing.assert_close(loss, expected)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(value.grad is None for value in made.backbone.parameters())
    assert all(value.grad is not None for value in made.adapters[task].parameters())


@pytest.mark.parametrize("beta", [1.0, 0.75])
def test_ppem_pulls_the_nearest_experts_together(beta: float) -> None:
    made = tied(beta=beta, pull_every=1)
    before = AdapterExperts.of(made, ROUTER)
    batch = made(molecules()).readout
    task = 3
    mean = before.distances(before.outputs(batch), task).mean(0)
    weights = before.weights(mean, task)
    made.after_step(3)
    after = AdapterExperts.of(made, ROUTER)
    for old, new in ((before.down, after.down), (before.up, after.up)):
        average = torch.einsum("k,kij->ij", weights, old)
        for k, weight in enumerate(weights):
            expected = beta * old[k] + (1 - beta) * average if weight > 0 else old[k]
            torch.testing.assert_close(new[k], expected)


def test_one_draw_for_all_tasks() -> None:
    made = stream(drawn=False)
    downs = [adapter.get_parameter("down").clone() for adapter in made.adapters]
    assert not torch.equal(downs[0], downs[1])
    for adapter in share_draw(made).adapters:
        assert torch.equal(adapter.get_parameter("down"), downs[0])
