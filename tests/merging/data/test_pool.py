"""The pool of unlabelled molecules: drawn from sources, every molecule once, none that is tested
on."""

import random

import pytest
import torch

from merging.data.pool import draw, feature_keys, make_feature_pool, make_pool
from models.data.feature_graph import FeatureGraph
from models.data.molecule import collate
from models.data.smiles import featurize
from models.errors import DataError
from tests.merging.graph_files import ring_graphs

BENZENE = ("c1ccccc1", "C1=CC=CC=C1")


def atoms(*smiles: str) -> list[int]:
    return [featurize(text).graph.num_nodes for text in smiles]


def test_molecules_of_all_sources_once_and_none_that_is_left_out() -> None:
    sources = {"one": ["CCO", BENZENE[0], "no molecule"], "two": ["OCC", "CCN", "[13CH3]CN", "C"]}
    pool = make_pool(sources, [BENZENE[1], "N#N"], None, 0)
    assert pool.record == {
        "drawn": {"one": 3, "two": 4},
        "unreadable": 1,
        "repeated": 2,
        "left_out": 1,
        "molecules": 3,
    }
    assert sorted(pool.graphs.node_counts.tolist()) == sorted(atoms("CCO", "CCN", "C"))


def test_graphs_are_those_that_are_predicted() -> None:
    smiles = ["C[C@H](N)C(=O)O", "F/C=C/F", "O=[N+]([O-])c1ccccc1"]
    pool = make_pool({"file": smiles}, [], None, 3)
    found = {int(count): k for k, count in enumerate(pool.graphs.node_counts)}
    for text in smiles:
        graph = featurize(text).graph
        ours = pool.graphs.select(torch.tensor([found[graph.num_nodes]]))
        expected = collate([graph])
        assert torch.equal(ours.x, expected.x)
        assert torch.equal(ours.edge_index, expected.edge_index)
        assert torch.equal(ours.edge_attr, expected.edge_attr)


def test_order_and_size_are_drawn_by_the_seed() -> None:
    sources = {"chains": ["C" * n for n in range(1, 41)]}
    orders = [make_pool(sources, [], 12, seed).graphs.node_counts.tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert len({*orders[0]}) == 12
    assert orders[0] != sorted(orders[0])
    assert sorted(make_pool(sources, [], 99, 0).graphs.node_counts.tolist()) == [*range(1, 41)]


def test_nothing_left_is_an_error_that_counts() -> None:
    with pytest.raises(DataError, match="'left_out': 1} and nothing else, expected some"):
        make_pool({"file": ["CCO", "?"]}, ["OCC"], None, 0)


def test_a_draw_is_uniform_and_does_not_depend_on_other_sources() -> None:
    texts = [str(k) for k in range(20)]
    counts = dict.fromkeys(texts, 0)
    for seed in range(2000):
        for text in draw(iter(texts), 5, seed, "file"):
            counts[text] += 1
    assert sum(counts.values()) == 10_000
    # 500 expected, with a standard deviation of 19
    assert all(400 < count < 600 for count in counts.values())
    assert draw(texts, 5, 0, "file") == draw(texts, 5, 0, "file") != draw(texts, 5, 0, "other")
    assert draw(texts, None, 0, "file") == draw(texts, 20, 0, "file") == texts


def test_a_draw_leaves_the_generator_of_the_process_alone() -> None:
    random.seed(1)
    expected = random.random()
    random.seed(1)
    draw("abc", 2, 0, "file")
    make_pool({"file": ["C", "N"]}, [], 1, 0)
    assert random.random() == expected


# --- graphs with numeric features ---


def relabelled(graph: FeatureGraph, seed: int = 0) -> FeatureGraph:
    order = torch.randperm(graph.num_nodes, generator=torch.Generator().manual_seed(seed))
    return FeatureGraph(graph.x[order], order.argsort()[graph.edge_index])


def test_keys_tell_graphs_apart_but_not_orders_of_nodes() -> None:
    graphs = ring_graphs(40)
    keys = feature_keys(graphs, 2)
    assert len(set(keys)) == 40
    assert feature_keys([relabelled(graph) for graph in reversed(graphs)], 2) == keys[::-1]
    (first, *_), x = graphs, graphs[0].x.clone()
    x[0, 0] += 1e-6
    directed = FeatureGraph(first.x, first.edge_index[:, 1:])
    assert not {*feature_keys([FeatureGraph(x, first.edge_index), directed], 2)} & {keys[0]}
    assert feature_keys([], 2) == []


def test_rounds_of_colours_see_as_far_as_layers() -> None:
    """Rings with two marked nodes, two steps apart and opposite: the same features, but other
    neighbours."""
    steps = torch.arange(6)
    ahead = torch.stack([steps, (steps + 1) % 6])
    near, opposite = torch.ones(6, 1), torch.ones(6, 1)
    near[[0, 2]], opposite[[0, 3]] = 2.0, 2.0
    graphs = [FeatureGraph(x, torch.cat([ahead, ahead.flip(0)], 1)) for x in (near, opposite)]
    assert len(set(feature_keys(graphs, 0))) == 1
    assert len(set(feature_keys(graphs, 1))) == 2


def test_two_triangles_and_a_hexagon_are_one_graph_for_any_network() -> None:
    """The example of what colour refinement, and with it message passing, cannot tell apart."""
    steps = torch.arange(6)
    hexagon = torch.stack([steps, (steps + 1) % 6])
    triangles = torch.stack([steps, torch.tensor([1, 2, 0, 4, 5, 3])])
    graphs = [
        FeatureGraph(torch.ones(6, 1), torch.cat([ahead, ahead.flip(0)], 1))
        for ahead in (hexagon, triangles)
    ]
    first, second = feature_keys(graphs, 9)
    assert first == second


def test_a_pool_of_graphs_leaves_out_what_is_tested_on() -> None:
    graphs = ring_graphs(30)
    sources = {"one": graphs[:20], "two": [relabelled(graph) for graph in graphs[15:]]}
    made = make_feature_pool(sources, graphs[:3], None, 0, 2)
    assert made.record == {
        "drawn": {"one": 20, "two": 15},
        "unreadable": 0,
        "repeated": 5,
        "left_out": 3,
        "graphs": 27,
    }
    assert made.graphs.x.dtype == torch.float32
    assert len(make_feature_pool(sources, [], 4, 0, 2).graphs) == 4
    with pytest.raises(DataError, match="expected some graphs for the pool"):
        make_feature_pool({"one": graphs}, graphs, None, 0, 2)
