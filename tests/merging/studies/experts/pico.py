"""Small experts and domains, made on the spot, for the tests of expert merging."""

import torch

from merging.data.split import Split
from merging.studies.experts.config import ExpertsConfig
from merging.studies.experts.domains import Domain
from merging.studies.experts.model import ExpertBank
from models.data.batch import GraphBatch
from models.data.feature_graph import FeatureGraph, collate_features
from models.networks.pyg import GraphNetworkConfig

NETWORK = GraphNetworkConfig(kind="pyg_gcn", in_dim=5, num_layers=2, hidden_dim=8)


def ring(nodes: int, seed: int, chords: int = 2) -> FeatureGraph:
    """A ring with some chords and random features."""
    generator = torch.Generator().manual_seed(seed)
    around = torch.arange(nodes)
    pairs = {(i, (i + 1) % nodes) for i in around.tolist()} | {
        (i, (i + 2) % nodes) for i in range(chords)
    }
    edges = (
        torch.tensor(
            sorted({pair for i, j in pairs if i != j for pair in ((i, j), (j, i))}),
            dtype=torch.int64,
        )
        .reshape(-1, 2)
        .T
    )
    return FeatureGraph(torch.randn((nodes, 5), generator=generator), edges).validate()


def domain(name: str, seed: int) -> Domain:
    """Thirty graphs with a label that their features decide."""
    graphs = tuple(ring(4 + k % 5, 100 * seed + k) for k in range(30))
    labels = torch.tensor([[float(graph.x[:, 0].mean() > 0)] for graph in graphs])
    split = Split(torch.arange(18), torch.arange(18, 24), torch.arange(24, 30))
    return Domain(name, graphs[:18], collate_features(graphs), labels, split)


def config(**changes: object) -> ExpertsConfig:
    values = {
        "setting": "pico",
        "description": "made in a test",
        "domains": ["bace", "bbbp", "sider", "clintox"],
        "network": NETWORK,
        "top_k": 2,
        "training": {"epochs": 2, "steps_per_epoch": 3, "learning_rate": 0.01, "batch_nodes": 24},
        "variants": {"none": {}},
    }
    return ExpertsConfig.model_validate(values | changes)


def domains() -> list[Domain]:
    return [domain(name, seed) for seed, name in enumerate(config().domains)]


def random_bank(network: GraphNetworkConfig = NETWORK, count: int = 4) -> ExpertBank:
    bank = ExpertBank(network, [f"expert{k}" for k in range(count)], 0)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in bank.parameters():
            value.add_(0.5 * torch.randn(value.shape, generator=generator))
    return bank.requires_grad_(False)


def batch() -> GraphBatch:
    return collate_features([ring(6, 1), ring(9, 2), ring(4, 3)])
