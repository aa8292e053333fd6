"""The compiled model against the plain one, and its classes of nodes against colours by hand."""

import csv
import gzip
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import models
from models.artifact import load_components
from models.compiled import batch as compiled_batch
from models.compiled import kernels
from models.compiled.model import CompiledModel, fastest
from models.data.batch import GraphBatch
from models.data.molecule import (
    NUM_ATOM_TYPES,
    NUM_BOND_DIRECTIONS,
    NUM_CHIRALITY_TAGS,
    SELF_LOOP,
    MolGraph,
    collate,
)
from models.data.smiles import featurize, read_graphs
from models.errors import InvalidInputError, UnknownTaskError
from models.experts.router import RouterConfig
from models.experts.unified import Routing, UnifiedModel
from models.networks.hu2020 import BackboneConfig, BackboneKind, Readout
from tests.conftest import (
    SHARING,
    SMILES,
    pico_config,
    random_backbone,
    random_experts,
    random_shared_experts,
    random_stream,
    sharing_experts,
)

_TOLERANCE = 2e-5


def _model(
    num_experts: int,
    num_layers: int = 3,
    rank: int = 5,
    router: RouterConfig | None = None,
    hidden_dim: int = 20,
    kind: BackboneKind = "gcn",
    readout: Readout = "mean",
) -> UnifiedModel:
    config = BackboneConfig(
        kind=kind, num_layers=num_layers, hidden_dim=hidden_dim, readout=readout
    )
    experts = {
        f"task{k}_{name}": expert
        for k in range(-(-num_experts // 3))
        for name, expert in random_experts(config, rank, k).items()
    }
    return UnifiedModel(
        random_backbone(config), dict(list(experts.items())[:num_experts]), router or RouterConfig()
    )


def _agree(
    model: UnifiedModel, batch: GraphBatch, routing: Routing, tasks: Sequence[str] | None = None
) -> None:
    with torch.inference_mode():
        expected = model(batch, tasks, routing)
    got = CompiledModel(model)(batch, tasks, routing)
    assert list(got.logits) == list(expected.logits)
    for task, logits in expected.logits.items():
        scale = max(1.0, float(logits.abs().max()))
        assert torch.allclose(got.logits[task], logits, rtol=0, atol=_TOLERANCE * scale), task
        assert torch.allclose(
            got.routing_weights[task], expected.routing_weights[task], rtol=0, atol=_TOLERANCE
        ), task
    assert list(got.embeddings) == list(expected.embeddings)
    for name, embedding in expected.embeddings.items():
        scale = max(1.0, float(embedding.abs().max()))
        assert torch.allclose(got.embeddings[name], embedding, rtol=0, atol=_TOLERANCE * scale)


@pytest.mark.parametrize("routing", get_args(Routing))
@pytest.mark.parametrize(
    ("num_experts", "num_layers", "rank"), [(1, 1, 1), (2, 2, 4), (3, 3, 5), (8, 5, 7), (9, 3, 3)]
)
def test_answers_are_those_of_the_plain_model(
    routing: Routing, num_experts: int, num_layers: int, rank: int, molecules: GraphBatch
) -> None:
    _agree(_model(num_experts, num_layers, rank), molecules, routing)


@pytest.mark.parametrize("routing", get_args(Routing))
@pytest.mark.parametrize(("kind", "readout"), [("gin_linear", "sum"), ("gcn", "sum")])
def test_sums_over_neighbours_and_atoms(
    routing: Routing, kind: BackboneKind, readout: Readout, molecules: GraphBatch
) -> None:
    _agree(_model(3, kind=kind, readout=readout), molecules, routing)


@pytest.mark.parametrize("routing", get_args(Routing))
def test_some_tasks_in_any_order(routing: Routing, molecules: GraphBatch) -> None:
    model = _model(8)
    _agree(model, molecules, routing, [model.tasks[5], model.tasks[0], model.tasks[6]])
    _agree(model, molecules, routing, [model.tasks[7]])


@pytest.mark.parametrize(
    "router",
    [
        RouterConfig(temperature=0.02, graph_temperature=1.0),
        RouterConfig(epsilon=0.05, tolerance=0.001, max_iters=300),
        RouterConfig(epsilon=0.3, tolerance=5.0, max_iters=1),
        RouterConfig(top_k=2),
        RouterConfig(mixed_layers=0),
        RouterConfig(mixed_layers=1),
        RouterConfig(mixed_layers=2),
    ],
)
def test_routers_options(router: RouterConfig, molecules: GraphBatch) -> None:
    _agree(_model(4, router=router), molecules, "moe")
    _agree(_model(4, router=router), molecules, "merged")


def test_silent_adapters_are_equal_and_not_far(molecules: GraphBatch) -> None:
    model = _model(3)
    for bank in (*model.node_banks, model.graph_bank):
        bank.down[:, 1] = 0
    _agree(model, molecules, "moe")


@pytest.mark.parametrize("routing", get_args(Routing))
def test_molecules_that_repeat_and_a_graph_that_no_molecule_has(routing: Routing) -> None:
    hub = featurize("C[Si](C)(C)C").graph
    star = replace(
        hub,
        x=torch.tensor([[5, 0]] * 40),
        edge_index=torch.tensor([[0] * 39 + list(range(1, 40)), list(range(1, 40)) + [0] * 39]),
        edge_attr=torch.tensor([[k % 4, k % 3] for k in range(39)] * 2),
    )
    graphs = [
        featurize(smiles).graph
        for smiles in ("CCO", "OCC", "CCO", "C", "C", "CC(C)(C)C", "c1ccccc1")
    ]
    _agree(_model(3), collate([*graphs, star, *graphs]), routing)


@pytest.mark.parametrize("routing", get_args(Routing))
def test_an_answer_depends_on_the_molecule_alone(routing: Routing) -> None:
    model = CompiledModel(_model(3))
    graphs = [featurize(smiles).graph for smiles in SMILES]
    together = model(collate(graphs), routing=routing)
    for k, graph in enumerate(graphs):
        single = model(collate([graph]), routing=routing)
        for task in model.tasks:
            assert torch.allclose(
                together.probabilities[task][k], single.probabilities[task][0], atol=1e-6
            )


@pytest.mark.parametrize("routing", get_args(Routing))
@pytest.mark.parametrize("case", SHARING)
@pytest.mark.parametrize("mixed_layers", [None, 1, 0])
def test_shared_streams_are_those_of_the_plain_model(
    case: str, routing: Routing, mixed_layers: int | None, molecules: GraphBatch
) -> None:
    config = pico_config()
    router = RouterConfig(graph_temperature=0.3, mixed_layers=mixed_layers)
    model = UnifiedModel(random_backbone(config), sharing_experts(case, config), router)
    tasks = model.tasks
    for some in (None, tasks[:1], tasks[1:], tasks[::2], tasks[::-1]):
        _agree(model, molecules, routing, some)


@pytest.mark.parametrize("routing", get_args(Routing))
@pytest.mark.parametrize("case", SHARING)
def test_an_answer_from_shared_streams_depends_on_the_molecule_alone(
    case: str, routing: Routing
) -> None:
    config = pico_config()
    experts = sharing_experts(case, config)
    model = CompiledModel(UnifiedModel(random_backbone(config), experts, RouterConfig()))
    graphs = [featurize(smiles).graph for smiles in SMILES]
    together = model(collate(graphs), routing=routing)
    for k, graph in enumerate(graphs):
        single = model(collate([graph]), routing=routing)
        for task in model.tasks:
            difference = together.probabilities[task][k] - single.probabilities[task][0]
            assert float(difference.abs().max()) <= 1e-6
        for name, embedding in single.embeddings.items():
            assert torch.allclose(together.embeddings[name][k], embedding[0], atol=1e-5)


def test_another_spelling_of_a_molecule_has_the_same_answer_from_a_shared_stream() -> None:
    config = pico_config()
    experts = sharing_experts("mixed", config)
    model = CompiledModel(UnifiedModel(random_backbone(config), experts, RouterConfig()))
    spelled = [featurize(text).graph for text in ("CC(=O)Oc1ccccc1C(=O)O", "OC(=O)c1ccccc1OC(C)=O")]
    for values in model(collate(spelled)).probabilities.values():
        assert torch.allclose(values[0], values[1], rtol=0, atol=1e-6)


def test_a_shared_stream_is_computed_once(
    molecules: GraphBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing of any adapter in its layers: the kernel gets one stream of rank 0."""
    config, shapes, layer = pico_config(), [], kernels.single_adapter_layer

    def recorded(out: NDArray[np.float32], values: object, projected: object, *rest: Any) -> None:
        shapes.append((len(out), rest[2].shape[1]))
        layer(out, values, projected, *rest)  # type: ignore[arg-type]

    experts = random_shared_experts(random_stream(config), (1, 2, 1, 3, 1))
    model = CompiledModel(UnifiedModel(random_backbone(config), experts, RouterConfig()))
    monkeypatch.setattr(kernels, "single_adapter_layer", recorded)
    for routing in get_args(Routing):
        model(molecules, routing=routing)
    assert shapes == [(1, 0)] * 2 * 3


@pytest.mark.parametrize("routing", get_args(Routing))
def test_released_artifact_on_real_molecules(routing: Routing, shared: Path) -> None:
    """Float32 in another order is all that may differ: a hundredth of what would be seen in the
    third digit of a probability."""
    with gzip.open(shared / "data/moleculenet/hiv.csv.gz", "rt") as file:
        smiles = random.Random(0).sample([row["smiles"] for row in csv.DictReader(file)], 60)
    batch = collate([graph for graph in read_graphs(smiles) if isinstance(graph, MolGraph)])
    artifact = load_components(Path(models.__file__).parent / "releases" / "moleculenet-gcn")
    plain = UnifiedModel(artifact.backbone, artifact.experts, artifact.manifest.router)
    with torch.inference_mode():
        expected = plain(batch, routing=routing).probabilities
    got = CompiledModel(plain)(batch, routing=routing).probabilities
    assert max(float((got[task] - expected[task]).abs().max()) for task in expected) < 1e-5


def test_numbers_and_classes_are_answered_as_by_the_plain_model(molecules: GraphBatch) -> None:
    experts = random_experts(pico_config())
    experts["beta"].target, experts["gamma"].target = "multiclass", "regression"
    plain = UnifiedModel(random_backbone(pico_config()), experts, RouterConfig())
    with torch.inference_mode():
        expected = plain(molecules).probabilities
    got = CompiledModel(plain)(molecules)
    assert torch.equal(got.probabilities["gamma"], got.logits["gamma"])
    for task, values in expected.items():
        torch.testing.assert_close(got.probabilities[task], values, rtol=0, atol=_TOLERANCE)
    assert got.probabilities["beta"].sum(1).allclose(torch.ones(molecules.num_graphs))


def test_what_cannot_be_compiled() -> None:
    for router in (
        RouterConfig(solver="exact"),
        RouterConfig(debias=True),
        RouterConfig(epsilon=0.01),
        RouterConfig(epsilon=0.1, tolerance=7.0),
    ):
        assert not CompiledModel.supports(_model(2, router=router))
    gin = UnifiedModel(
        random_backbone(pico_config("gin")), random_experts(pico_config("gin")), RouterConfig()
    )
    with pytest.raises(InvalidInputError, match="expected a GCN"):
        CompiledModel(gin)


def test_tasks_on_nodes_are_not_compiled() -> None:
    model = _model(2)
    assert CompiledModel.supports(model)
    model.levels[model.tasks[1]] = "node"
    assert not CompiledModel.supports(model)
    assert fastest(model) is model


def test_fastest_is_compiled_where_it_can_be(molecules: GraphBatch) -> None:
    plain = _model(2)
    model = fastest(plain)
    assert isinstance(model, CompiledModel)
    expected = CompiledModel(plain)(molecules).logits
    assert all(torch.equal(model(molecules).logits[task], expected[task]) for task in plain.tasks)


def test_sizes_and_bytes() -> None:
    """Every tensor by hand, for 3 experts padded to the SIMD width of 8."""
    layers, width, rank, padded = 3, 20, 5, 8
    plain = _model(3, layers, rank, hidden_dim=width)
    model = CompiledModel(plain)
    assert model.sizes == (width, rank)
    columns, experts = width + 3 * rank, 3
    layer = (width + SELF_LOOP + 1 + NUM_BOND_DIRECTIONS + 1) * columns
    layer += experts * (rank * width + 2 * width) + (experts + 1) * rank * rank * padded
    labels = sum(map(len, plain.label_names.values()))
    heads = labels * (width + 1)
    embeddings = (NUM_ATOM_TYPES + NUM_CHIRALITY_TAGS) * width
    numbers = layers * layer + heads + embeddings + 2 * experts * width * rank
    assert model.num_bytes == 4 * numbers


def test_wrong_arguments(molecules: GraphBatch) -> None:
    model = CompiledModel(_model(2))
    with pytest.raises(UnknownTaskError, match="got task 'delta'"):
        model(molecules, ["delta"])
    with pytest.raises(InvalidInputError, match="got no task"):
        model(molecules, [])
    with pytest.raises(InvalidInputError, match="got routing 'best'"):
        model(molecules, routing="best")  # type: ignore[arg-type]


def _colours(batch: GraphBatch, rounds: int) -> list[object]:
    """Return colours as nested tuples, equal exactly where the surroundings are."""
    colours: list[object] = [tuple(row) for row in batch.x.tolist()]
    edges = list(zip(*batch.edge_index.tolist(), batch.edge_attr.tolist(), strict=True))
    for _ in range(rounds):
        around: list[list[object]] = [[] for _ in colours]
        for source, target, bond in edges:
            around[target].append((str(colours[source]), *bond))
        colours = [
            (colour, tuple(sorted(map(str, near))))
            for colour, near in zip(colours, around, strict=True)
        ]
    return colours


def test_classes_are_the_surroundings(molecules: GraphBatch) -> None:
    starts, order = compiled_batch.group_by_row(
        molecules.edge_index[1].numpy(), molecules.num_nodes
    )
    sources = molecules.edge_index[0].numpy()[order]
    bonds = (molecules.edge_attr[:, 0] * 3 + molecules.edge_attr[:, 1]).numpy()[order]
    classes = (molecules.x[:, 0] * 3 + molecules.x[:, 1]).numpy()
    for rounds in range(1, 4):
        classes, representatives = compiled_batch.refine(classes, starts, sources, bonds)
        by_hand = _colours(molecules, rounds)
        assert len(representatives) == len(set(map(str, by_hand))) == len(set(classes))
        for node, colour in enumerate(by_hand):
            assert str(colour) == str(by_hand[representatives[classes[node]]])


def test_classes_with_many_neighbours() -> None:
    """Two hubs of 40 neighbours, in another order, are of one class; a third, with one other bond,
    is not."""
    bonds = np.tile(np.arange(40) % 4 * 3, (3, 1))
    bonds[1] = bonds[1][::-1]
    bonds[2, 7] += 1
    starts = np.concatenate([np.arange(4) * 40, np.full(120, 120)])
    classes, representatives = compiled_batch.refine(
        np.zeros(123, np.int64), starts, np.arange(3, 123), bonds.ravel().astype(np.int64)
    )
    assert classes[0] == classes[1] != classes[2]
    assert len(representatives) == 3  # both kinds of hubs, and all that have no neighbours
