"""Message passing against loops over edges, in float64."""

import pytest
import torch
from torch import Tensor

from models.data.batch import GraphBatch
from models.data.molecule import NUM_BOND_TYPES, SELF_LOOP
from models.networks.propagation import NUM_EDGE_FEATURES, Propagation
from tests.conftest import assert_law


def edges_with_loops(batch: GraphBatch) -> list[tuple[int, int, int, int]]:
    """Return (target, source, bond type, bond direction) of every edge, sorted by target."""
    source, target = batch.edge_index.tolist()
    edges = list(zip(target, source, *batch.edge_attr.T.tolist(), strict=True))
    edges += [(node, node, SELF_LOOP, 0) for node in range(batch.num_nodes)]
    return sorted(edges, key=lambda edge: edge[0])


def one_atom() -> GraphBatch:
    return GraphBatch(
        torch.tensor([[5, 0]]),
        torch.empty((2, 0), dtype=torch.int64),
        torch.empty((0, 2), dtype=torch.int64),
        torch.tensor([0]),
        1,
    )


@pytest.fixture(params=["molecules", "one atom"])
def batch(request: pytest.FixtureRequest, molecules: GraphBatch) -> GraphBatch:
    return molecules if request.param == "molecules" else one_atom()


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_edges_are_sorted_by_target_with_a_loop_at_every_atom(batch: GraphBatch) -> None:
    edges, expected = Propagation.from_batch(batch), edges_with_loops(batch)
    found = zip(
        edges.target.tolist(),
        edges.source.tolist(),
        edges.bond_type.tolist(),
        edges.bond_direction.tolist(),
        strict=True,
    )
    assert sorted(found) == sorted(expected)
    assert edges.target.tolist() == [target for target, *_ in expected]
    assert edges.num_nodes == batch.num_nodes


def test_degrees_count_edges_and_the_loop() -> None:
    """A directed star, where the two differ."""
    star = GraphBatch(
        torch.zeros((4, 2), dtype=torch.int64),
        torch.tensor([[0, 0, 0, 1], [1, 2, 3, 0]]),
        torch.zeros((4, 2), dtype=torch.int64),
        torch.zeros(4, dtype=torch.int64),
        1,
    )
    edges = Propagation.from_batch(star)
    assert edges.out_degree().tolist() == [4, 2, 1, 1]
    assert edges.in_degree().tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("trailing", [(), (3,), (2, 3)])
def test_edge_feature_sums_are_weights_by_type_and_direction(
    batch: GraphBatch, trailing: tuple[int, ...]
) -> None:
    edges = Propagation.from_batch(batch)
    weights = random(len(edges.source), *trailing)
    expected = torch.zeros(batch.num_nodes, *trailing, NUM_EDGE_FEATURES, dtype=torch.float64)
    for entry, weight in enumerate(weights):
        target = int(edges.target[entry])
        expected[target, ..., int(edges.bond_type[entry])] += weight
        expected[target, ..., NUM_BOND_TYPES + int(edges.bond_direction[entry])] += weight
    assert_law(edges.edge_feature_sums(weights), expected)


@pytest.mark.parametrize("trailing", [(5,), (2, 5)])
def test_aggregate_sums_weighted_neighbours(batch: GraphBatch, trailing: tuple[int, ...]) -> None:
    edges = Propagation.from_batch(batch)
    weights, h = random(len(edges.source)), random(batch.num_nodes, *trailing)
    expected = torch.zeros_like(h)
    for entry, weight in enumerate(weights):
        expected[int(edges.target[entry])] += weight * h[int(edges.source[entry])]
    assert_law(edges.aggregate(weights, h), expected)
