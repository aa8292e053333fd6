"""Graphs with numeric node features in flat tensors."""

import pytest
import torch

from models.data.feature_graph import FeatureGraph, collate_features, pack_features
from models.errors import InvalidInputError


def chains(*sizes: int, features: int = 4) -> list[FeatureGraph]:
    """Chains with random features; one node has no edge."""
    steps = [torch.arange(size - 1) for size in sizes]
    edges = [torch.cat([torch.stack([s, s + 1]), torch.stack([s + 1, s])], 1) for s in steps]
    generator = torch.Generator().manual_seed(0)
    return [
        FeatureGraph(torch.rand(size, features, generator=generator), ends).validate()
        for size, ends in zip(sizes, edges, strict=True)
    ]


def test_batches_of_packed_graphs_are_those_of_the_graphs() -> None:
    graphs, rows = chains(3, 1, 5, 2), torch.tensor([3, 1, 0, 1])
    found = pack_features(graphs).select(rows)
    expected = collate_features([graphs[k] for k in rows.tolist()])
    assert found.num_graphs == expected.num_graphs == 4
    for name in ("x", "edge_index", "edge_attr", "batch"):
        one, other = getattr(found, name), getattr(expected, name)
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_graphs_of_different_widths_are_not_packed() -> None:
    with pytest.raises(InvalidInputError, match=r"got \[3, 4\] features for each node"):
        pack_features([*chains(2), *chains(2, features=3)])
