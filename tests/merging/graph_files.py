"""Synthetic graphs whose labels follow a simple rule, as files of `merging.data.graph_file` and
configurations that name them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merging.data.graph_file import write_graphs
from merging.families.graphs import GraphConfig
from models.data.feature_graph import FeatureGraph
from models.ops.segment import segment_mean

LABELS = {
    "multilabel": ["high", "low"],
    "multiclass": ["first", "second", "third"],
    "regression": ["sum", "difference"],
}
NETWORK = {"kind": "pyg_sage", "in_dim": 4, "num_layers": 2, "hidden_dim": 16}
TRAINING = {
    "epochs": 20,
    "patience": 20,
    "batch_size": 16,
    "learning_rate": 0.03,
    "weight_decay": 0.0,
    "dropout": 0.0,
}


def ring_graphs(count: int = 80, features: int = 4, seed: int = 0) -> list[FeatureGraph]:
    """Rings of 3 to 9 nodes with random features around a mean of each graph's own."""
    generator = torch.Generator().manual_seed(seed)
    graphs = []
    for size in torch.randint(3, 10, (count,), generator=generator).tolist():
        nodes = torch.arange(size)
        ahead = torch.stack([nodes, (nodes + 1) % size])
        x = torch.randn(1, features, generator=generator) + 0.5 * torch.randn(
            size, features, generator=generator
        )
        graphs.append(FeatureGraph(x, torch.cat([ahead, ahead.flip(0)], dim=1)).validate())
    return graphs


def rule(graphs: list[FeatureGraph], level: str, target: str) -> Tensor:
    """Labels by the features: means over a graph, or over a node's neighbours; every seventh number
    is missing."""
    if level == "graph":
        means = torch.stack([graph.x.mean(0) for graph in graphs])
    else:
        means = torch.cat(
            [
                segment_mean(graph.x[graph.edge_index[0]], graph.edge_index[1], graph.num_nodes)
                for graph in graphs
            ]
        )
    if target == "multiclass":
        classes = means[:, :3].argmax(1)
        classes[::7] = -1
        return classes
    numbers = torch.stack(
        [10 + 3 * (means[:, 0] + means[:, 1]), 100 * (means[:, 0] - means[:, 1])], dim=1
    )
    labels = (
        numbers
        if target == "regression"
        else torch.stack([means[:, 0] > 0, means[:, 1] < 0.2], dim=1).float()
    )
    labels[::7, 0] = torch.nan
    return labels


def write_rule(
    path: Path, level: str, target: str, features: int = 4, seed: int = 0
) -> dict[str, Any]:
    """Write a graph file and return its task for a configuration."""
    graphs = ring_graphs(features=features, seed=seed)
    write_graphs(path, graphs, rule(graphs, level, target))
    return {
        "kind": "file",
        "file": path.name,
        "level": level,
        "target": target,
        "labels": LABELS[target],
    }


def make_config(tasks: dict[str, Any], **changes: Any) -> GraphConfig:
    """Build a pico configuration."""
    values: dict[str, Any] = {
        "setting": "pico",
        "network": NETWORK,
        "tasks": tasks,
        "training": TRAINING,
        "release": {"name": "pico"},
    }
    return GraphConfig.model_validate(values | changes)
