"""Answers of a GPU against the CPU in double precision."""

import logging
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

import models
from merging.config.training import AlignmentConfig
from merging.training.alignment import align
from models.artifact import load_artifact
from models.data.atoms import Atoms
from models.data.batch import GraphBatch
from models.data.feature_graph import FeatureGraph, collate_features
from models.data.molecule import pack
from models.data.smiles import featurize
from models.experts.router import RouterConfig
from models.experts.unified import Routing, UnifiedModel
from models.networks.force_field import MergedForceField
from models.networks.hu2020 import BackboneKind
from models.ops.sparse import Pattern, edge_dots, spmm
from models.transport import sinkhorn
from models.transport.problem import Solver, Support
from models.transport.solve import solve_transport
from models.transport.twd import twd
from tests.conftest import (
    KINDS,
    SHARING,
    SMILES,
    collate_atoms,
    pico_config,
    random_backbone,
    random_experts,
    sharing_experts,
)

RELEASES = Path(models.__file__).parent / "releases"
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=CUDA)]
on_devices = pytest.mark.parametrize("device", DEVICES)
SOLVERS: tuple[Solver, ...] = get_args(Solver)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Compare a result of any device with double precision on the CPU."""
    torch.testing.assert_close(found.detach().cpu().double(), expected, rtol=0, atol=tolerance)


@on_devices
@pytest.mark.parametrize("routing", get_args(Routing))
@pytest.mark.parametrize("kind", KINDS)
def test_merged_model(
    molecules: GraphBatch, device: str, kind: BackboneKind, routing: Routing
) -> None:
    config = pico_config(kind)
    router = RouterConfig(temperature=0.3, graph_temperature=0.3)
    model = UnifiedModel(random_backbone(config), random_experts(config), router)
    found = model.to(device)(molecules.to(device), routing=routing)
    expected = model.to("cpu").double()(molecules, routing=routing)
    for task in model.tasks:
        assert found.logits[task].device.type == device
        close(found.probabilities[task], expected.probabilities[task])
        close(found.routing_weights[task], expected.routing_weights[task])


@on_devices
@pytest.mark.parametrize("routing", get_args(Routing))
@pytest.mark.parametrize("case", SHARING)
def test_shared_streams(molecules: GraphBatch, device: str, case: str, routing: Routing) -> None:
    config = pico_config()
    router = RouterConfig(temperature=0.3, graph_temperature=0.3)
    model = UnifiedModel(random_backbone(config), sharing_experts(case, config), router)
    found = model.to(device)(molecules.to(device), routing=routing)
    expected = model.to("cpu").double()(molecules, routing=routing)
    for task in model.tasks:
        close(found.probabilities[task], expected.probabilities[task])
        close(found.routing_weights[task], expected.routing_weights[task])
    for name, embedding in expected.embeddings.items():
        assert found.embeddings[name].device.type == device
        close(found.embeddings[name], embedding)


@on_devices
@pytest.mark.parametrize("routing", get_args(Routing))
def test_released_model(molecules: GraphBatch, device: str, routing: Routing) -> None:
    model = load_artifact(RELEASES / "moleculenet-gcn", device).model
    assert isinstance(model, UnifiedModel)
    found = model(molecules.to(device), routing=routing).probabilities
    expected = model.to("cpu").double()(molecules, routing=routing).probabilities
    for task, values in expected.items():
        close(found[task], values)


@on_devices
def test_released_model_of_graphs(device: str) -> None:
    words = torch.zeros(3, 1433)
    words[0, :5] = words[1, 3:9] = words[2, 100:110] = 1
    edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    batch = collate_features([FeatureGraph(words, edges)])
    model = load_artifact(RELEASES / "cora-label-split", device).model
    assert isinstance(model, UnifiedModel)
    found = model(batch.to(device)).probabilities
    on_cpu = load_artifact(RELEASES / "cora-label-split").model(batch).probabilities
    for task, values in on_cpu.items():
        close(found[task], values.double())


@on_devices
def test_released_force_field(device: str) -> None:
    positions = [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]]
    atoms = Atoms.from_lists([8, 1, 1], positions)
    model, reference = (load_artifact(RELEASES / "md17-schnet", at).model for at in (device, "cpu"))
    assert isinstance(model, MergedForceField)
    assert isinstance(reference, MergedForceField)
    batch = collate_atoms([atoms], reference.network.config.cutoff)
    found, expected = (
        of(at, ["ethanol"]) for of, at in ((model, batch.to(device)), (reference, batch))
    )
    close(found["ethanol"].energy, expected["ethanol"].energy, 1e-3)
    close(found["ethanol"].forces, expected["ethanol"].forces.double(), 1e-3)


@on_devices
def test_sparse_products_and_their_gradients(device: str) -> None:
    generator = torch.Generator().manual_seed(3)
    rows = torch.arange(40).repeat_interleave(3)
    cols = torch.stack(
        [torch.randperm(40, generator=generator)[:3].sort().values for _ in range(40)]
    )
    values = torch.randn(120, generator=generator)
    h = torch.randn(40, 5, generator=generator)

    def run(at: str, dtype: torch.dtype) -> list[Tensor]:
        pattern = Pattern(rows.to(at), cols.flatten().to(at), 40)
        weights = values.to(at, dtype).requires_grad_()
        dense = h.to(at, dtype).requires_grad_()
        product = spmm(weights, dense, pattern)
        dots = edge_dots(product, dense, pattern)
        return [product, dots, *torch.autograd.grad(dots.square().sum(), (weights, dense))]

    for found, expected in zip(run(device, torch.float32), run("cpu", torch.float64), strict=True):
        torch.testing.assert_close(found.detach().cpu().double(), expected, rtol=1e-4, atol=1e-4)


@on_devices
@pytest.mark.parametrize("solver", SOLVERS)
def test_transport_and_its_gradient(molecules: GraphBatch, device: str, solver: Solver) -> None:
    generator = torch.Generator().manual_seed(5)
    h, h_ref = torch.randn(2, molecules.num_nodes, 6, generator=generator)

    def run(at: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        batch, h_moved = molecules.to(at), h.to(at, dtype).requires_grad_()
        graph = batch.edge_index, batch.batch, batch.num_graphs
        result = twd(h_moved, h_ref.to(at, dtype), *graph, solver=solver, tolerance=1e-6)
        (gradient,) = torch.autograd.grad(result.cost.sum(), h_moved)
        return result.cost, result.plan, gradient

    for found, expected in zip(run(device, torch.float32), run("cpu", torch.float64), strict=True):
        assert found.device.type == device
        close(found, expected)


@CUDA
def test_exact_transport_says_that_it_runs_on_the_cpu(
    molecules: GraphBatch, caplog: pytest.LogCaptureFixture
) -> None:
    sinkhorn.warn_exact_on_cpu.cache_clear()
    batch = molecules.to("cuda")
    support = Support.from_graph(batch.edge_index, batch.batch, batch.num_graphs)
    cost = torch.rand(len(support.rows), device="cuda")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert solve_transport(cost, support, solver="exact").plan.is_cuda
    assert [record.getMessage() for record in caplog.records] == [sinkhorn.EXACT_ON_CPU]


@on_devices
@pytest.mark.parametrize("solver", SOLVERS)
def test_adapters_learn(device: str, solver: Solver, tmp_path: Path) -> None:
    graphs = pack([featurize(smiles).graph for smiles in SMILES])
    teacher, merged = random_backbone(pico_config(), 1), random_backbone(pico_config(), 2)
    config = AlignmentConfig(rank=4, epochs=6, batch_size=5, learning_rate=0.01, solver=solver)
    result = align(
        graphs=graphs,
        rows=torch.arange(len(graphs)),
        teacher=teacher,
        backbone=merged,
        config=config,
        seed=0,
        checkpoint=tmp_path / "resume.pt",
        device=torch.device(device),
        name="pico",
    )
    losses = result.record["loss"]
    assert losses[-1] < 0.95 * losses[0]
    assert result.record["transport"] == f"{solver} on {'cpu' if solver == 'exact' else device}"
    assert all(value.isfinite().all() for value in result.adapters.state_dict().values())
