"""Models of which some tasks share streams."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from models.data.batch import GraphBatch, mean_readout
from models.data.feature_graph import FeatureGraph, collate_features
from models.data.molecule import collate
from models.data.smiles import featurize
from models.errors import InvalidInputError
from models.experts.adapter import Stream, stream_of_backbone, trace
from models.experts.expert import Expert, SharedExpert, TaskExpert, shared_streams
from models.experts.router import RouterConfig
from models.experts.streams import StreamTable
from models.experts.unified import Routing, UnifiedModel
from models.networks.hu2020 import Backbone
from models.networks.pyg import GraphNetwork, GraphNetworkConfig
from tests.conftest import (
    KINDS,
    SHARING,
    SMILES,
    BackboneKind,
    assert_law,
    pico_config,
    random_backbone,
    random_experts,
    random_shared_experts,
    random_stream,
    sharing_experts,
)

ROUTER = RouterConfig(temperature=0.3, graph_temperature=0.3)


def network(case: str, kind: BackboneKind = "gcn") -> tuple[Backbone, dict[str, TaskExpert]]:
    """Build a model in float64, so that rounding does not matter."""
    experts = sharing_experts(case, pico_config(kind))
    for expert in experts.values():
        expert.double()
        expert.stream.double()
    return random_backbone(pico_config(kind)).double(), experts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", SHARING)
def test_own_equals_each_expert_alone(case: str, kind: BackboneKind, molecules: GraphBatch) -> None:
    backbone, experts = network(case, kind)
    output = UnifiedModel(backbone, experts, ROUTER)(molecules, routing="own")
    for task, expert in experts.items():
        assert_law(output.logits[task], expert(backbone, molecules))


def test_a_shared_task_by_hand(molecules: GraphBatch) -> None:
    """e = g - relu(g D) U, and g is the readout of the backbone with the stream's statistics."""
    backbone, experts = network("shared")
    stream = next(iter(experts.values())).stream
    readout = trace(
        backbone, molecules, None, lambda layer, h: stream.normalise(backbone, layer, h)
    ).graph_embedding
    output = UnifiedModel(backbone, experts, ROUTER)(molecules)
    assert_law(output.embeddings["common"], readout)
    for task, expert in experts.items():
        adapter = expert.graph_adapter
        e = readout - (readout @ adapter.down).relu() @ adapter.up
        assert_law(output.logits[task], (e @ expert.head.weight.T + expert.head.bias).detach())


def test_a_stream_of_a_backbones_own_statistics_is_the_backbone(molecules: GraphBatch) -> None:
    backbone = random_backbone(pico_config()).double()
    stream = stream_of_backbone(backbone, "common").double()
    experts = random_shared_experts(stream)
    output = UnifiedModel(backbone, {k: e.double() for k, e in experts.items()}, ROUTER)(molecules)
    assert_law(output.embeddings["common"], mean_readout(backbone(molecules), molecules).detach())


def test_a_network_without_batch_norm_is_a_stream_of_its_own() -> None:
    shape = GraphNetworkConfig(kind="pyg_gin", in_dim=3, num_layers=2, hidden_dim=8)
    network = GraphNetwork(shape).double().eval()
    experts = random_shared_experts(stream_of_backbone(network, "common"))
    batch = collate_features([FeatureGraph(torch.rand(3, 3).double(), torch.tensor([[0], [1]]))])
    output = UnifiedModel(network, {k: e.double() for k, e in experts.items()}, ROUTER)(batch)
    assert_law(output.embeddings["common"], mean_readout(network(batch), batch).detach())


@pytest.mark.parametrize("routing", get_args(Routing))
@pytest.mark.parametrize(("case", "count"), [("shared", 1), ("mixed", 4), ("several", 3)])
def test_a_pass_computes_each_stream_once(
    case: str, count: int, routing: Routing, molecules: GraphBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, experts = network(case)
    model, shapes = UnifiedModel(backbone, experts, ROUTER), []
    forward = Backbone.forward

    def recorded(self: Backbone, *arguments: object) -> Tensor:
        shapes.append(forward(self, *arguments))  # type: ignore[arg-type]
        return shapes[-1]

    monkeypatch.setattr(Backbone, "forward", recorded)
    output = model(molecules, routing=routing)
    shared = [task for task, expert in experts.items() if expert.stream.name == "common"]
    model(molecules, shared[1:], routing)
    assert [h.shape[1] for h in shapes] == [count, 1]
    names = {expert.stream.name or task for task, expert in experts.items()}
    assert output.embeddings.keys() == names
    assert all(g.shape == (molecules.num_graphs, 16) for g in output.embeddings.values())


@pytest.mark.parametrize("case", SHARING)
@pytest.mark.parametrize("routing", get_args(Routing))
def test_an_answer_depends_on_the_molecule_alone(
    case: str, routing: Routing, molecules: GraphBatch
) -> None:
    model = UnifiedModel(*network(case), ROUTER)
    together = model(molecules, routing=routing)
    for g, smiles in enumerate(SMILES):
        single = model(collate([featurize(smiles).graph]), routing=routing)
        for task in model.tasks:
            assert_law(together.logits[task][g], single.logits[task][0])
            assert_law(together.routing_weights[task][g], single.routing_weights[task][0])
        for name, embeddings in single.embeddings.items():
            assert_law(together.embeddings[name][g], embeddings[0])


@pytest.mark.parametrize("case", SHARING)
@pytest.mark.parametrize("routing", get_args(Routing))
def test_a_task_depends_on_no_other_task(
    case: str, routing: Routing, molecules: GraphBatch
) -> None:
    model = UnifiedModel(*network(case), ROUTER)
    everything = model(molecules, routing=routing)
    for task in model.tasks:
        single = model(molecules, [task], routing)
        assert_law(single.logits[task], everything.logits[task])
        assert_law(single.routing_weights[task], everything.routing_weights[task])
    some = model(molecules, list(reversed(model.tasks))[::2], routing)
    assert list(some.logits) == list(reversed(model.tasks))[::2]
    for task, logits in some.logits.items():
        assert_law(logits, everything.logits[task])


@pytest.mark.parametrize("case", SHARING)
def test_weights_sum_to_one_and_are_one_hot_in_shared_streams(
    case: str, molecules: GraphBatch
) -> None:
    backbone, experts = network(case)
    model = UnifiedModel(backbone, experts, ROUTER)
    own = torch.tensor([not expert.stream.name for expert in experts.values()])
    for routing in get_args(Routing):
        weights = model(molecules, routing=routing).routing_weights
        for k, (task, expert) in enumerate(experts.items()):
            found = weights[task]
            assert found.shape == (molecules.num_graphs, 4, len(experts))
            assert_law(found.sum(-1), torch.ones(found.shape[:2], dtype=torch.float64))
            nodes = found[:, :3]
            assert not nodes[..., ~own & (torch.arange(len(experts)) != k)].any()
            if expert.stream.name or routing == "own":
                assert (nodes[..., k] == 1).all()
            if routing == "moe" or (routing == "merged" and expert.stream.name):
                assert (found[:, 3] > 0).all(), "all tasks mix at the graph site"


@pytest.mark.parametrize("routing", ["moe", "merged"])
@pytest.mark.parametrize("mixed_layers", [None, 1, 0])
def test_tasks_of_their_own_streams_mix_as_if_there_were_no_others(
    routing: Routing, mixed_layers: int | None, molecules: GraphBatch
) -> None:
    """At node sites; at the graph site the others take part."""
    backbone, experts = network("mixed")
    router = RouterConfig(temperature=0.3, graph_temperature=0.3, mixed_layers=mixed_layers)
    own: dict[str, TaskExpert] = {k: e for k, e in experts.items() if isinstance(e, Expert)}
    columns = [k for k, task in enumerate(experts) if task in own]
    together = UnifiedModel(backbone, experts, router)(molecules, routing=routing)
    expected = UnifiedModel(backbone, own, router)(molecules, routing=routing)
    for task in own:
        assert_law(together.embeddings[task], expected.embeddings[task])
        weights = together.routing_weights[task][:, :3, columns]
        assert_law(weights, expected.routing_weights[task][:, :3])
        if routing == "merged" and mixed_layers != 0:
            assert_law(together.logits[task], expected.logits[task])


@pytest.mark.parametrize("case", SHARING)
@pytest.mark.parametrize("routing", ["moe", "merged"])
def test_the_graph_site_mixes_with_the_weights_that_it_reports(
    case: str, routing: Routing, molecules: GraphBatch
) -> None:
    """Adapter by adapter with its own rank, or parameter by parameter with zeros for missing
    columns."""
    backbone, experts = network(case)
    output = UnifiedModel(backbone, experts, ROUTER)(molecules, routing=routing)
    adapters = [expert.graph_adapter for expert in experts.values()]
    for task, expert in experts.items():
        g, weights = output.embeddings[expert.stream.name or task], output.routing_weights[task]
        for row, w in zip(range(len(g)), weights[:, -1], strict=True):
            if routing == "moe":
                bias = sum(k * adapter(g[row]) for k, adapter in zip(w, adapters, strict=True))
            else:
                down, up = torch.zeros(16, 9).double(), torch.zeros(9, 16).double()
                for k, adapter in zip(w, adapters, strict=True):
                    rank = len(adapter.up)
                    down[:, :rank] += k * adapter.down.detach()
                    up[:rank] += k * adapter.up.detach()
                bias = (g[row] @ down).relu() @ up
            assert_law(output.logits[task][row], expert.head(g[row] - bias).detach())


def test_batch_statistics_of_a_shared_stream(molecules: GraphBatch) -> None:
    backbone, experts = network("shared")
    model = UnifiedModel(backbone, experts, ROUTER)
    output = model(molecules, statistics="batch").embeddings["common"]
    expected = mean_readout(backbone.train()(molecules), molecules)
    assert_law(output, expected.detach())


def test_the_order_of_streams() -> None:
    experts = sharing_experts("several", pico_config())
    table = StreamTable(experts)
    assert table.names == ("beta", "common", "another")
    assert (table.own, table.of_task) == (1, (1, 2, 2, 0, 1, 1))
    chosen = table.select([4, 3, 0])
    assert (chosen.streams, chosen.of_task, chosen.own) == ((0, 1), (1, 0, 1), 1)
    assert chosen.has_own_stream == [False, True, False]


def test_streams_that_cannot_be_told_apart() -> None:
    config = pico_config()
    first, second = random_stream(config), random_stream(config)
    one = SharedExpert(first, 2, ["y"])
    assert shared_streams({"a": one, "b": SharedExpert(first, 3, ["y"])}) == {"common": first}
    with pytest.raises(InvalidInputError, match="two streams 'common'"):
        shared_streams({"a": one, "b": SharedExpert(second, 2, ["y"])})
    with pytest.raises(InvalidInputError, match="got stream 'common', expected a name that no"):
        UnifiedModel(random_backbone(config), {"common": one}, ROUTER)
    with pytest.raises(InvalidInputError, match="without a name"):
        SharedExpert(Stream(config), 2, ["y"])


def test_a_shared_expert_holds_no_tensors_of_its_stream() -> None:
    expert = SharedExpert(random_stream(pico_config(), 2), 5, ["y", "z"])
    shapes = {key: tuple(value.shape) for key, value in expert.state_dict().items()}
    assert shapes == {
        "graph.down": (16, 5),
        "graph.up": (5, 16),
        "head.weight": (2, 16),
        "head.bias": (2,),
    }
    assert not random_experts(pico_config())["alpha"].stream.name
