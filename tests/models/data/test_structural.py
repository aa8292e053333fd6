import numpy as np
import pytest
import torch
from torch import Tensor

from models.data.structural import (
    DEGREES,
    POSITIONS,
    STRUCTURAL_FEATURES,
    EgoGraphs,
    Walk,
    structural_features,
    whole_graph,
)
from models.errors import InvalidInputError


def both_ways(pairs: list[tuple[int, int]]) -> Tensor:
    forth = torch.tensor(pairs).T
    return torch.cat([forth, forth.flip(0)], dim=1)


def random_graph(nodes: int, seed: int = 0, share: float = 0.2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand((nodes, nodes), generator=generator).triu(1) > 1 - share
    return torch.stack(torch.nonzero(drawn | drawn.T, as_tuple=True))


STAR = both_ways([(0, k) for k in range(1, 6)])


def test_positions_are_absolute_entries_of_single_eigenvectors() -> None:
    """A path has no eigenvalue twice."""
    path = both_ways([(k, k + 1) for k in range(6)])
    adjacency = np.zeros((7, 7))
    adjacency[path[0], path[1]] = 1
    scale = adjacency.sum(1) ** -0.5
    values, vectors = np.linalg.eigh(scale[:, None] * adjacency * scale)
    expected = np.abs(vectors[:, np.argsort(-values)])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = structural_features(path, 7)[:, :POSITIONS]
    assert np.allclose(found[:, :7], expected, atol=6e-5)
    assert not found[:, 7:].any()


def test_leaves_of_a_star_are_alike() -> None:
    """Its eigenvalue 0 occurs four times: eigenvectors of it are arbitrary, and single out
    leaves."""
    x = structural_features(STAR, 6)
    assert torch.equal(x[1:], x[1].expand(5, -1))


@pytest.mark.parametrize("edge_index", [STAR, random_graph(20), random_graph(60, 1)])
def test_features_follow_the_nodes_in_any_order(edge_index: Tensor) -> None:
    nodes = int(edge_index.max()) + 1
    order = torch.randperm(nodes, generator=torch.Generator().manual_seed(2))
    moved = torch.empty(nodes, dtype=torch.int64)
    moved[order] = torch.arange(nodes)
    features = structural_features(edge_index, nodes)
    assert torch.equal(structural_features(moved[edge_index], nodes), features[order])


def test_degrees_are_counted_in_half_octaves() -> None:
    degrees = structural_features(STAR, 7)[:, POSITIONS : POSITIONS + DEGREES]
    assert degrees[0].nonzero().tolist() == [[4]]  # floor(2 log2 5)
    assert (degrees[1:6, 0] == 1).all()
    assert (degrees[1:6].sum(1) == 1).all()
    assert not degrees[6].any(), "a node without neighbours"
    hub = both_ways([(0, k) for k in range(1, 400)])
    assert structural_features(hub, 400)[0, POSITIONS + DEGREES - 1] == 1


def test_the_centre_is_marked_or_the_largest_degree() -> None:
    assert structural_features(STAR, 6, 3)[:, -1].tolist() == [0, 0, 0, 1, 0, 0]
    assert structural_features(STAR, 6)[:, -1].tolist() == [1, 0, 0, 0, 0, 0]
    ring = both_ways([(0, 1), (1, 2), (2, 0)])
    assert structural_features(ring, 3)[:, -1].tolist() == [1, 1, 1]


def test_a_node_alone_has_features() -> None:
    x = structural_features(torch.empty((2, 0), dtype=torch.int64), 1, 0)
    assert x.shape == (1, STRUCTURAL_FEATURES)
    assert x.isfinite().all()


def test_wrong_input_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="centre 6"):
        structural_features(STAR, 6, 6)
    with pytest.raises(InvalidInputError, match="one direction"):
        whole_graph(STAR[:, :5], 6)
    with pytest.raises(InvalidInputError, match="repeated"):
        EgoGraphs(torch.cat([STAR, STAR], dim=1), 6)


def test_an_ego_graph_has_all_edges_between_the_visited_nodes() -> None:
    edge_index = random_graph(50)
    ego = EgoGraphs(edge_index, 50, Walk(hops=20))[7]
    adjacent = set(zip(*edge_index.tolist(), strict=True))
    around = {b for a, b in adjacent if a == 7}
    assert 1 < ego.num_nodes <= 21
    assert len(adjacent) > ego.edge_index.shape[1] > 0
    assert ego.validate().x[:, -1].tolist() == [1.0] + [0.0] * (ego.num_nodes - 1)
    assert set(ego.edge_index[1, ego.edge_index[0] == 0].tolist()) <= set(range(1, 1 + len(around)))


def test_without_chance_of_leaving_a_walk_sees_the_neighbours() -> None:
    ego = EgoGraphs(STAR, 6, Walk(hops=200, restart=1.0))[0]
    assert torch.equal(ego.edge_index.unique(dim=1), STAR.unique(dim=1))
    assert EgoGraphs(STAR, 7)[6].num_nodes == 1


def test_the_ego_graph_of_a_node_is_always_the_same() -> None:
    edge_index = random_graph(50)
    egos = EgoGraphs(edge_index, 50, Walk(hops=20))
    first, again = egos[3], EgoGraphs(edge_index.flip(0), 50, Walk(hops=20))[3]
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.edge_index, again.edge_index)
    other = egos.drawn(3, np.random.default_rng(1))
    assert other.num_nodes != first.num_nodes or not torch.equal(other.x, first.x)
