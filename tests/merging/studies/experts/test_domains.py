"""Data sets as domains: pieces of a graph, batches taken apart, and real data."""

from pathlib import Path

import pytest
import torch

from merging.studies.experts.config import load_experts_config
from merging.studies.experts.domains import graphs_of, load_domain, pieces
from models.data.feature_graph import FeatureGraph, collate_features
from tests.merging.studies.experts.pico import ring


def test_pieces_keep_every_node_once_and_only_edges_inside() -> None:
    whole = ring(50, 1, chords=10)
    found = pieces(whole, 16)
    assert max(piece.num_nodes for piece in found) <= 16
    rows = torch.cat([piece.x for piece in found])
    assert torch.equal(rows[rows[:, 0].argsort()], whole.x[whole.x[:, 0].argsort()])
    edges = {
        (tuple(whole.x[i].tolist()), tuple(whole.x[j].tolist()))
        for i, j in whole.edge_index.T.tolist()
    }
    kept = [
        (tuple(piece.x[i].tolist()), tuple(piece.x[j].tolist()))
        for piece in found
        for i, j in piece.edge_index.T.tolist()
    ]
    assert set(kept) <= edges
    assert len(set(kept)) == len(kept) > len(edges) / 2
    assert len(pieces(whole, 50)) == 1
    assert pieces(whole, 50)[0].edge_index.shape == whole.edge_index.shape


def test_graphs_of_undoes_collating() -> None:
    graphs = [
        ring(6, 1),
        FeatureGraph(torch.ones(1, 5), torch.empty((2, 0), dtype=torch.int64)),
        ring(4, 3),
    ]
    for got, expected in zip(graphs_of(collate_features(graphs)), graphs, strict=True):
        assert torch.equal(got.x, expected.x)
        assert torch.equal(got.edge_index, expected.edge_index)


def test_real_domains_have_one_width(shared: Path, tmp_path: Path) -> None:
    settings = load_experts_config(Path("six_domains.yaml"))
    cora = load_domain("cora", settings, shared / "data", tmp_path)
    assert cora.evaluated.x.shape == (2708, 64)
    assert sum(graph.num_nodes for graph in cora.graphs) == 2708
    inside = sum(graph.edge_index.shape[1] for graph in cora.graphs)
    assert inside / cora.evaluated.edge_index.shape[1] == pytest.approx(0.676, abs=0.001)
    assert cora.has_node_labels
