from typing import get_args

import pytest
import torch

from models.data.batch import GraphBatch
from models.data.located import locate
from models.data.molecule import collate
from models.data.smiles import featurize
from models.errors import InvalidInputError, UnknownTaskError
from models.experts.adapter import apply_norm, trace
from models.experts.expert import Expert
from models.experts.node_sums import NodeSum
from models.experts.router import RouterConfig
from models.experts.unified import Routing, UnifiedModel
from models.networks.hu2020 import Backbone, BackboneConfig
from tests.conftest import (
    KINDS,
    SHARING,
    SMILES,
    BackboneKind,
    assert_law,
    pico_config,
    random_backbone,
    random_experts,
    sharing_experts,
)


def network(kind: BackboneKind = "gcn") -> tuple[Backbone, dict[str, Expert]]:
    """Build a model in float64, so that rounding does not matter."""
    experts = random_experts(pico_config(kind))
    return random_backbone(pico_config(kind)).double(), {
        task: expert.double() for task, expert in experts.items()
    }


def pico_model(kind: BackboneKind = "gcn", router: RouterConfig | None = None) -> UnifiedModel:
    return UnifiedModel(*network(kind), router or RouterConfig(temperature=0.3))


@pytest.mark.parametrize("kind", KINDS)
def test_own_equals_each_expert_alone(kind: BackboneKind, molecules: GraphBatch) -> None:
    backbone, experts = network(kind)
    output = UnifiedModel(backbone, experts, RouterConfig())(molecules, routing="own")
    for task, expert in experts.items():
        assert_law(output.logits[task], expert(backbone, molecules))


@pytest.mark.parametrize("routing", ["moe", "merged"])
def test_cold_router_gives_the_own_answer(routing: Routing, molecules: GraphBatch) -> None:
    model = pico_model(
        router=RouterConfig(solver="exact", temperature=1e-6, graph_temperature=1e-6)
    )
    single, mixed = model(molecules, routing="own"), model(molecules, routing=routing)
    for task in model.tasks:
        assert_law(mixed.logits[task], single.logits[task])


def test_mixture_equals_the_slow_sum_of_weighted_adapters(molecules: GraphBatch) -> None:
    """The weights that the model reports, applied adapter by adapter, give the logits that it
    reports."""
    backbone, experts = network()
    output = UnifiedModel(backbone, experts, RouterConfig(temperature=0.3, graph_temperature=0.3))(
        molecules, routing="moe"
    )
    for task, expert in experts.items():
        weights = output.routing_weights[task]
        assert float(weights.max(-1).values.mean()) < 0.95, "the test needs a real mixture"

        def mixed(site: int, h: torch.Tensor, weights: torch.Tensor = weights) -> torch.Tensor:
            rows = weights[:, site] if site == 3 else weights[molecules.batch, site]
            return h - sum(
                rows[:, i, None] * other.adapters.sites[site](h)
                for i, other in enumerate(experts.values())
            )  # type: ignore[return-value]

        def normalise(layer: int, h: torch.Tensor, expert: object = expert) -> torch.Tensor:
            return apply_norm(
                backbone,
                layer,
                h,
                expert.adapters.norm_mean[layer],
                expert.adapters.norm_var[layer],
            )  # type: ignore[attr-defined]

        expected = expert.head(trace(backbone, molecules, mixed, normalise).graph_embedding)
        assert_law(output.logits[task], expected)


@pytest.mark.parametrize("mixed_layers", [None, 1, 0])
def test_merged_equals_each_graph_with_averaged_parameters(
    mixed_layers: int | None, molecules: GraphBatch
) -> None:
    """Graph by graph and site by site, adapters are averaged parameter by parameter with the
    weights that the model reports."""
    backbone, experts = network()
    router = RouterConfig(temperature=0.3, graph_temperature=0.3, mixed_layers=mixed_layers)
    output = UnifiedModel(backbone, experts, router)(molecules, routing="merged")
    for task, expert in experts.items():
        for g, smiles in enumerate(SMILES):
            averaged = Expert(pico_config(), 4, expert.label_names).double()
            averaged.load_state_dict(expert.state_dict())
            for site, weights in enumerate(output.routing_weights[task][g]):
                for name in ("down", "up"):
                    inputs = [
                        float(w) * getattr(other.adapters.sites[site], name)
                        for w, other in zip(weights, experts.values(), strict=True)
                    ]
                    getattr(averaged.adapters.sites[site], name).data = sum(
                        inputs[1:], inputs[0]
                    ).detach()
            expected = averaged(backbone, collate([featurize(smiles).graph]))
            assert_law(output.logits[task][g], expected[0])


@pytest.mark.parametrize("mixed_layers", [None, 2, 1, 0])
def test_merged_takes_the_weights_of_the_first_site_that_mixes(
    mixed_layers: int | None, molecules: GraphBatch
) -> None:
    model = pico_model(router=RouterConfig(temperature=0.3, mixed_layers=mixed_layers))
    merged, moe = (
        model(molecules, routing=routing).routing_weights for routing in ("merged", "moe")
    )
    first = 3 - (3 if mixed_layers is None else mixed_layers)
    for task, weights in merged.items():
        assert_law(weights[:, : first + 1], moe[task][:, : first + 1])
        assert torch.equal(
            weights[:, first:], weights[:, first : first + 1].expand(-1, 4 - first, -1)
        )


def test_averaging_parameters_is_not_averaging_outputs(molecules: GraphBatch) -> None:
    merged, moe = (
        pico_model()(molecules, routing=routing).logits["alpha"] for routing in ("merged", "moe")
    )
    assert float((merged - moe).abs().max()) > 1e-3


def test_all_routings_agree_where_there_is_one_expert(molecules: GraphBatch) -> None:
    backbone, experts = network()
    model = UnifiedModel(backbone, {"beta": experts["beta"]}, RouterConfig())
    expected, *others = (
        model(molecules, routing=routing).logits["beta"] for routing in ("own", "moe", "merged")
    )
    for logits in others:
        assert_law(logits, expected)


def test_all_routings_agree_where_all_adapters_are_the_same(molecules: GraphBatch) -> None:
    backbone, experts = network()
    for expert in experts.values():
        expert.adapters.sites.load_state_dict(experts["alpha"].adapters.sites.state_dict())
    model = UnifiedModel(backbone, experts, RouterConfig())
    expected, *others = (
        model(molecules, routing=routing).logits for routing in ("own", "moe", "merged")
    )
    for logits in others:
        for task in model.tasks:
            assert_law(logits[task], expected[task])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("routing", get_args(Routing))
def test_an_answer_depends_on_the_molecule_alone(
    kind: BackboneKind, routing: Routing, molecules: GraphBatch
) -> None:
    model = pico_model(kind)
    together = model(molecules, routing=routing)
    for g, smiles in enumerate(SMILES):
        single = model(collate([featurize(smiles).graph]), routing=routing)
        for task in model.tasks:
            assert_law(together.probabilities[task][g], single.probabilities[task][0])
            assert_law(together.routing_weights[task][g], single.routing_weights[task][0])


@pytest.mark.parametrize("routing", get_args(Routing))
def test_a_task_depends_on_no_other_task(routing: Routing, molecules: GraphBatch) -> None:
    model = pico_model()
    everything = model(molecules, routing=routing)
    for task in model.tasks:
        assert_law(model(molecules, [task], routing).logits[task], everything.logits[task])
    assert list(model(molecules, ["gamma", "alpha"]).logits) == ["gamma", "alpha"]


def test_weights_sum_to_one_at_every_site(molecules: GraphBatch) -> None:
    model = pico_model()
    for routing in get_args(Routing):
        for weights in model(molecules, routing=routing).routing_weights.values():
            assert weights.shape == (molecules.num_graphs, len(model.site_names), 3)
            torch.testing.assert_close(
                weights.sum(-1), torch.ones(weights.shape[:2], dtype=torch.float64)
            )


def test_batch_statistics_are_those_of_the_batch(molecules: GraphBatch) -> None:
    """What the authors evaluate with: the answer then does depend on the neighbours."""
    model = pico_model()
    together = model(molecules, routing="own", statistics="batch").logits["alpha"][0]
    single = model(collate([featurize(SMILES[0]).graph]), routing="own", statistics="batch").logits[
        "alpha"
    ][0]
    assert float((together - single).abs().max()) > 1e-3


def test_wrong_arguments(molecules: GraphBatch) -> None:
    with pytest.raises(UnknownTaskError, match=r"'delta'.*alpha, beta, gamma"):
        pico_model()(molecules, ["delta"])
    with pytest.raises(InvalidInputError, match="'average'"):
        pico_model()(molecules, routing="average")  # type: ignore[arg-type]


@pytest.mark.parametrize("mixed_layers", [0, 1, 2])
def test_only_the_last_layers_mix(mixed_layers: int, molecules: GraphBatch) -> None:
    expected = pico_model()(molecules, routing="own").routing_weights
    mixed = pico_model(router=RouterConfig(mixed_layers=mixed_layers))(
        molecules, routing="moe"
    ).routing_weights
    for task, weights in mixed.items():
        before = 3 - mixed_layers
        assert torch.equal(weights[:, :before], expected[task][:, :before])
        assert (weights[:, before:] != expected[task][:, before:]).flatten(2).any(2).all()


def whole(split: NodeSum) -> torch.Tensor:
    """The outputs that the contributions sum to, (G, C)."""
    sums = [nodes.sum(0) for nodes in split.contributions.split(list(split.sizes))]
    return torch.stack(sums) + split.bias


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("routing", get_args(Routing))
def test_outputs_are_sums_over_nodes(
    kind: BackboneKind, routing: Routing, molecules: GraphBatch
) -> None:
    """Exactly, although relu decides which units of the graph adapters are active."""
    model = pico_model(kind)
    logits = model(molecules, routing=routing).logits
    labels = {"beta": (2, 0), "alpha": (0,)}
    sums = model.node_sums(molecules, labels, routing)
    assert list(sums) == ["beta", "alpha"]
    for task, split in sums.items():
        assert_law(split.outputs, logits[task][:, list(labels[task])])
        assert_law(whole(split), split.outputs)


@pytest.mark.parametrize("case", SHARING)
@pytest.mark.parametrize("routing", get_args(Routing))
def test_outputs_of_shared_streams_are_sums_over_nodes(
    case: str, routing: Routing, molecules: GraphBatch
) -> None:
    experts = sharing_experts(case, pico_config())
    for expert in experts.values():
        expert.double().stream.double()
    backbone = random_backbone(pico_config()).double()
    model = UnifiedModel(backbone, experts, RouterConfig(temperature=0.3, graph_temperature=0.3))
    logits = model(molecules, routing=routing).logits
    labels = {task: range(len(names)) for task, names in model.label_names.items()}
    for task, split in model.node_sums(molecules, labels, routing).items():
        assert_law(whole(split), logits[task])


def test_outputs_of_a_sum_readout_are_sums_over_nodes(molecules: GraphBatch) -> None:
    config = BackboneConfig(kind="gin_linear", num_layers=3, hidden_dim=16, readout="sum")
    experts = {task: expert.double() for task, expert in random_experts(config).items()}
    model = UnifiedModel(random_backbone(config).double(), experts, RouterConfig())
    (split,) = model.node_sums(molecules, {"gamma": (1,)}, "own").values()
    assert_law(whole(split), model(molecules, ["gamma"]).logits["gamma"][:, 1:])


def test_an_adapter_changes_what_atoms_contribute(molecules: GraphBatch) -> None:
    """The head's weights alone, as of a class activation map, sum to something else."""
    model = pico_model()
    (split,) = model.node_sums(molecules, {"alpha": (0,)}, "own").values()
    with torch.no_grad():
        model.graph_bank.up.zero_()
    (bare,) = model.node_sums(molecules, {"alpha": (0,)}, "own").values()
    assert not torch.allclose(split.contributions, bare.contributions, rtol=0.1)


def test_what_atoms_contribute_depends_on_their_molecule_alone(molecules: GraphBatch) -> None:
    """Neither on the batch nor on the order of its atoms; symmetric atoms contribute alike."""
    model, labels = pico_model(), {"beta": range(3)}
    together = model.node_sums(molecules, labels, "moe")["beta"]
    parts = together.contributions.split(list(together.sizes))
    for smiles, expected in zip(SMILES, parts, strict=True):
        graph = featurize(smiles).graph
        alone = model.node_sums(collate([graph]), labels, "moe")["beta"]
        assert_law(alone.contributions, expected)
    benzoic = locate("O=C(O)c1ccccc1").graph
    (one,) = model.node_sums(collate([benzoic]), {"alpha": (0,)}, "own").values()
    values = one.contributions[:, 0]
    assert_law(values[[4, 5]], values[[8, 7]])
    assert len(values.round(decimals=9).unique()) == 7


def test_nodes_have_no_sums(molecules: GraphBatch) -> None:
    backbone, experts = network()
    experts["beta"].level = "node"
    model = UnifiedModel(backbone, experts, RouterConfig())
    with pytest.raises(InvalidInputError, match="got task 'beta' at level 'node'"):
        model.node_sums(molecules, {"beta": (0,)}, "own")
