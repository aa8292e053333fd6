"""Folded weights against the modules that they come from, in float64."""

import pytest
import torch
from torch import Tensor, nn

from models.compiled.fold import ExpertSelection, FoldedLayer, fold_layer
from models.compiled.transport import SIMD_WIDTH
from models.data.batch import GraphBatch
from models.data.molecule import NUM_BOND_DIRECTIONS, SELF_LOOP
from models.experts.adapter import Adapter, apply_norm
from models.experts.router import RouterConfig
from models.experts.unified import UnifiedModel
from models.networks.hu2020 import Backbone, BackboneConfig, GCNConvolution
from models.networks.propagation import Propagation
from tests.conftest import assert_law, random_backbone, random_experts

_WIDTH = 10


def unified(num_experts: int, rank: int) -> UnifiedModel:
    config = BackboneConfig(kind="gcn", num_layers=2, hidden_dim=_WIDTH)
    experts = {
        f"{task}{seed}": expert
        for seed in range(-(-num_experts // 3))
        for task, expert in random_experts(config, rank, seed).items()
    }
    chosen = {task: expert.double() for task, expert in list(experts.items())[:num_experts]}
    return UnifiedModel(random_backbone(config).double(), chosen, RouterConfig())


def folded(model: UnifiedModel, number: int) -> FoldedLayer:
    backbone = model.backbone
    assert isinstance(backbone, Backbone)
    statistics = model.norm_mean[number], model.norm_var[number]
    return fold_layer(backbone, number, model.node_banks[number], *statistics)


def bond_counts(batch: GraphBatch) -> Tensor:
    """Sum edge weights by bond type, by direction and in total, edge by edge: (N, ...)."""
    counts = torch.zeros(batch.num_nodes, SELF_LOOP + 1 + NUM_BOND_DIRECTIONS + 1).double()
    degree = batch.edge_index[0].bincount(minlength=batch.num_nodes) + 1.0
    edges = [*zip(*batch.edge_index.tolist(), *batch.edge_attr.T.tolist(), strict=True)]
    edges += [(node, node, SELF_LOOP, 0) for node in range(batch.num_nodes)]
    for source, target, kind, direction in edges:
        weight = (degree[source] * degree[target]).double() ** -0.5
        for column in (kind, SELF_LOOP + 1 + direction, -1):
            counts[target, column] += weight
    return counts


def aggregated(batch: GraphBatch, values: Tensor) -> Tensor:
    """Sum (deg_i deg_j)^-1/2 values_j over a node and its neighbours, edge by edge."""
    degree = batch.edge_index[0].bincount(minlength=batch.num_nodes).double() + 1
    out = values / degree[:, None]
    for source, target in batch.edge_index.T.tolist():
        out[target] += values[source] * (degree[source] * degree[target]) ** -0.5
    return out


@pytest.mark.parametrize(("num_experts", "rank"), [(1, 1), (3, 4), (8, 2), (9, 3)])
@pytest.mark.parametrize("number", [0, 1])
def test_folded_layer_is_convolution_projection_and_norm(
    num_experts: int, rank: int, number: int, molecules: GraphBatch
) -> None:
    model = unified(num_experts, rank)
    layer = folded(model, number)
    h = torch.randn(
        molecules.num_nodes, _WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    convolution = model.backbone.gnns[number]
    assert isinstance(convolution, GCNConvolution)
    convolved = convolution(h, Propagation.from_batch(molecules))
    both = aggregated(molecules, h @ layer.linear) + bond_counts(molecules) @ layer.bonds
    assert_law(both[:, :_WIDTH], convolved)
    expected = torch.cat([convolved @ down for down in model.node_banks[number].down.unbind(1)], 1)
    assert_law(both[:, _WIDTH:], expected)
    for k in range(num_experts):
        normalised = apply_norm(
            model.backbone, number, h, model.norm_mean[number, k], model.norm_var[number, k]
        )
        assert_law(h * layer.gain[k] + layer.offset[k], normalised)


@pytest.mark.parametrize(("num_experts", "rank"), [(1, 1), (3, 4), (8, 2), (9, 3)])
def test_gram_matrices_are_padded_with_zeros(num_experts: int, rank: int) -> None:
    model = unified(num_experts, rank)
    layer = folded(model, 1)
    padded = -(-num_experts // SIMD_WIDTH) * SIMD_WIDTH
    assert layer.self_gram.shape == (rank, rank, padded)
    assert layer.cross_gram.shape == (num_experts, rank, rank, padded)
    for expert, up in enumerate(layer.up):
        assert_law(layer.self_gram[..., expert], up @ up.T)
        for target, other in enumerate(layer.up):
            assert_law(layer.cross_gram[target, ..., expert], up @ other.T)
    assert not layer.self_gram[..., num_experts:].any()
    assert not layer.cross_gram[..., num_experts:].any()


def test_up_is_the_adapters_and_not_the_banks_memory() -> None:
    model = unified(3, 4)
    layer = folded(model, 0)
    before = model.node_banks[0].up.clone()
    model.node_banks[0].up.zero_()
    assert torch.equal(layer.up, before)
    assert before.any()


@pytest.mark.parametrize("positions", [[0], [1, 2], [2, 0], [0, 1, 2], [1, 1]])
def test_a_selection_takes_the_rows_of_its_experts(positions: list[int]) -> None:
    selection = ExpertSelection(positions)
    values = torch.arange(12.0).view(3, 4)
    assert len(selection) == len(positions)
    assert selection.experts.tolist() == positions
    assert selection.select(values).tolist() == [values[k].tolist() for k in positions]
    consecutive = positions == list(range(positions[0], positions[-1] + 1))
    shares = (
        selection.select(values).untyped_storage().data_ptr() == values.untyped_storage().data_ptr()
    )
    assert shares == consecutive


@pytest.mark.parametrize(
    ("size", "expected"), [(1, [[2], [0], [1]]), (2, [[2, 0], [1]]), (9, [[2, 0, 1]])]
)
def test_a_selection_is_split_in_order(size: int, expected: list[list[int]]) -> None:
    split = ExpertSelection([2, 0, 1]).split(size)
    assert [selection.experts.tolist() for selection in split] == expected
    assert [list(selection.positions) for selection in split] == expected


@pytest.mark.parametrize("positions", [[1], [2, 0], [0, 1, 2]])
def test_weights_of_some_experts_are_their_columns(positions: list[int]) -> None:
    model = unified(3, 4)
    layer: FoldedLayer = folded(model, 1)
    selected = layer.for_experts(ExpertSelection(positions))
    linear = torch.from_numpy(selected.projection)
    convolution = model.backbone.gnns[1]
    assert isinstance(convolution, GCNConvolution)
    assert isinstance(convolution.linear, nn.Linear)
    assert linear.is_contiguous()
    for k, expert in enumerate(positions):
        adapter = Adapter(_WIDTH, 4).double()
        with torch.no_grad():
            adapter.down.copy_(model.node_banks[1].down[:, expert])
        assert_law(linear[k], (convolution.linear.weight.T @ adapter.down).T.detach())
        assert_law(selected.bonds[k], layer.bonds[:, :_WIDTH] @ adapter.down.detach())
