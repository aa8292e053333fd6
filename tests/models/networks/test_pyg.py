from typing import get_args

import pytest
import torch
from torch import Tensor

from models.data.feature_graph import FeatureGraph, collate_features
from models.errors import InvalidInputError
from models.experts.expert import Expert
from models.experts.router import RouterConfig
from models.experts.unified import UnifiedModel
from models.networks.pyg import GraphNetwork, GraphNetworkConfig, GraphNetworkKind
from tests.conftest import assert_law

KINDS = get_args(GraphNetworkKind)


def config(kind: GraphNetworkKind, **changes: object) -> GraphNetworkConfig:
    return GraphNetworkConfig.model_validate(
        {"kind": kind, "in_dim": 5, "hidden_dim": 8, "heads": 2, "num_layers": 3, **changes}
    )


def graph(nodes: int, seed: int, features: int = 5) -> FeatureGraph:
    """Build a ring with a chord, both directions of each edge, in float64."""
    generator = torch.Generator().manual_seed(seed)
    ring = torch.arange(nodes)
    half = torch.cat(
        [torch.stack([ring, (ring + 1) % nodes]), torch.tensor([[0], [nodes // 2]])], dim=1
    )
    x = torch.randn(nodes, features, generator=generator, dtype=torch.float64)
    return FeatureGraph(x, torch.cat([half, half.flip(0)], dim=1)).validate()


def network(kind: GraphNetworkKind, **changes: object) -> GraphNetwork:
    torch.manual_seed(0)
    return GraphNetwork(config(kind, **changes)).eval().double()


def experts(shape: GraphNetworkConfig, rank: int = 2) -> dict[str, Expert]:
    """Build a task on nodes and one on graphs, with nonzero adapters."""
    torch.manual_seed(1)
    made = {
        "on_nodes": Expert(shape, rank, ["a", "b"], "node", "multiclass", 5),
        "on_graphs": Expert(shape, rank, ["y"], "graph", "regression", 5),
    }
    for expert in made.values():
        for site in expert.adapters.sites:
            site.up.data.normal_()  # type: ignore[union-attr, operator]
    return {task: expert.double() for task, expert in made.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_what_each_graph_gives_alone(kind: GraphNetworkKind) -> None:
    single = FeatureGraph.from_lists([[1.0, 0, 0, 0, 2]], [[], []])
    graphs = [graph(6, 0), graph(9, 1), FeatureGraph(single.x.double(), single.edge_index)]
    together = network(kind)(collate_features(graphs))
    single = torch.cat([network(kind)(collate_features([graph])) for graph in graphs])
    assert_law(together, single)


@pytest.mark.parametrize("kind", KINDS)
def test_renumbering_the_nodes_renumbers_the_embeddings(kind: GraphNetworkKind) -> None:
    original, order = graph(7, 3), torch.tensor([3, 1, 6, 0, 2, 5, 4])
    renumbered = FeatureGraph(original.x[order], order.argsort()[original.edge_index])
    made = network(kind)
    assert_law(made(collate_features([renumbered])), made(collate_features([original]))[order])


@pytest.mark.parametrize("kind", KINDS)
def test_streams_are_passes_of_their_own(kind: GraphNetworkKind) -> None:
    batch = collate_features([graph(6, 0)])
    streams = torch.randn(6, 3, 5, dtype=torch.float64)

    def pass_of(x: Tensor) -> Tensor:
        return network(kind)(type(batch)(x, batch.edge_index, batch.edge_attr, batch.batch, 1))

    assert_law(
        pass_of(streams), torch.stack([pass_of(stream) for stream in streams.unbind(1)], dim=1)
    )


def test_gcn_is_the_textbook_equation() -> None:
    """H' = D^-1/2 (A + I) D^-1/2 H W + b (Kipf and Welling 2017), written with a dense matrix."""
    made, one = network("pyg_gcn", num_layers=1), graph(6, 0)
    adjacency = torch.eye(6, dtype=torch.float64)
    adjacency[one.edge_index[1], one.edge_index[0]] = 1
    scale = adjacency.sum(1).rsqrt().diag()
    layer = made.gnns[0]
    expected = scale @ adjacency @ scale @ one.x @ layer.lin.weight.T + layer.bias  # type: ignore[union-attr, operator]
    assert_law(made(collate_features([one])), expected)


def test_row_normalisation_makes_the_scale_of_a_node_of_no_matter() -> None:
    one = graph(6, 0)
    louder = FeatureGraph(one.x * torch.arange(1.0, 7.0)[:, None], one.edge_index)
    made = network("pyg_gcn", row_normalise=True)
    torch.testing.assert_close(made(collate_features([louder])), made(collate_features([one])))
    empty = FeatureGraph(
        torch.zeros(2, 5, dtype=torch.float64), torch.empty((2, 0), dtype=torch.int64)
    )
    assert bool(made(collate_features([empty])).isfinite().all())


def test_features_of_another_width_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="got 4 features for each node, expected 5"):
        network("pyg_gcn")(collate_features([graph(6, 0, features=4)]))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="multiple of heads"):
        config("pyg_gat", hidden_dim=9)


def test_the_depth_of_an_mlp_is_a_gins() -> None:
    made = network("pyg_gin", mlp_layers=3)
    linears = [name for name in made.state_dict() if name.startswith("gnns.0.nn.")]
    assert len(linears) == 6
    with pytest.raises(ValueError, match="mlp_layers: got 3 of pyg_gcn, which has no MLP"):
        config("pyg_gcn", mlp_layers=3)
    assert made.config.model_dump()["mlp_layers"] == 3
    assert "mlp_layers" not in config("pyg_gin").model_dump()  # as older versions read it


@pytest.mark.parametrize("routing", ["own", "moe"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_unified_model_answers_nodes_and_graphs(kind: GraphNetworkKind, routing: str) -> None:
    model = UnifiedModel(network(kind), experts(config(kind)), RouterConfig())
    graphs = [graph(6, 0), graph(9, 1)]
    output = model(collate_features(graphs), routing=routing)
    assert output.probabilities["on_nodes"].shape == (15, 2)
    torch.testing.assert_close(
        output.probabilities["on_nodes"].sum(1), torch.ones(15, dtype=torch.float64)
    )
    torch.testing.assert_close(output.probabilities["on_graphs"], output.logits["on_graphs"])
    torch.testing.assert_close(
        output.routing_weights["on_nodes"].sum(-1), torch.ones(2, 4, dtype=torch.float64)
    )
    single = torch.cat(
        [model(collate_features([graph]), routing=routing).logits["on_nodes"] for graph in graphs]
    )
    assert_law(output.logits["on_nodes"], single)


def test_own_routing_is_each_tasks_own_adapters() -> None:
    shape, made = config("pyg_gcn"), experts(config("pyg_gcn"))
    batch = collate_features([graph(6, 0), graph(9, 1)])
    model = UnifiedModel(network("pyg_gcn"), made, RouterConfig())
    assert shape == model.backbone.config
    assert_law(model(batch).logits["on_graphs"], made["on_graphs"](network("pyg_gcn"), batch))


def test_each_task_has_its_own_encoder() -> None:
    shape = config("pyg_gcn")
    torch.manual_seed(2)
    made = {
        task: Expert(shape, 0, ["a"], "node", "regression", 7).double()
        for task in ("wide", "wider")
    }
    model, one = UnifiedModel(network("pyg_gcn"), made, RouterConfig()), graph(6, 0, features=7)
    for task, expert in made.items():
        assert expert.encoder is not None
        encoded = FeatureGraph(expert.encoder(one.x).detach(), one.edge_index)
        expected = expert.head(network("pyg_gcn")(collate_features([encoded])))
        assert_law(model(collate_features([one])).logits[task], expected)


@pytest.mark.parametrize(
    ("x", "edge_index", "message"),
    [
        ([], [[], []], "at least one row"),
        ([[1.0], [1.0, 2.0]], [[], []], r"rows of \[1, 2\] numbers"),
        ([[1.0]], [[0]], "expected 2 of one length"),
        ([[1.0], [2.0]], [[0], [2]], "expected 0 to 1"),
        ([[1.0], [2.0]], [[0], [-1]], "expected 0 to 1"),
        ([[1.0]], [[0], [0]], "self-loop"),
        ([[1.0], [2.0]], [[0, 0], [1, 1]], "repeated edge"),
        ([[float("nan")]], [[], []], "not finite"),
    ],
)
def test_a_graph_that_cannot_be_answered_is_refused(
    x: list[list[float]], edge_index: list[list[int]], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        FeatureGraph.from_lists(x, edge_index)


def test_graphs_of_two_widths_do_not_fit_into_one_batch() -> None:
    with pytest.raises(InvalidInputError, match=r"\[4, 5\] features"):
        collate_features([graph(6, 0), graph(6, 0, features=4)])
