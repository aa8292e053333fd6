"""Small experts and domains, made on the spot, for the tests of expert merging."""

from pathlib import Path
from typing import Any

import torch
import yaml

from merging.data.split import Split
from merging.run.config import load_config
from merging.run.run import Run
from merging.studies.experts.config import ExpertsConfig
from merging.studies.experts.domains import Domain
from merging.studies.experts.model import ExpertBank
from models.data.batch import GraphBatch
from models.data.feature_graph import FeatureGraph, collate_features
from models.networks.pyg import GraphNetworkConfig
from tests.merging.conftest import molecules, write_csv, write_pico

NETWORK = GraphNetworkConfig(kind="pyg_gcn", in_dim=5, num_layers=2, hidden_dim=8)
REGRESSIONS = ("length", "carbons", "nitrogens", "rings", "oxygens")


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


def regressions(folder: Path, **sections: Any) -> Run:
    """A run of five regressions on molecules, two of them related, with some changed sections."""
    values = yaml.safe_load(write_pico(folder).read_text())
    counted = {"carbons": "C", "nitrogens": "N", "rings": "1", "oxygens": "O"}
    for task in REGRESSIONS:
        rows = [(smiles, str(_count(smiles, counted.get(task)))) for smiles in molecules()]
        write_csv(folder / f"data/{task}.csv", "smiles", ("y",), rows)
    values["tasks"] = list(REGRESSIONS)
    values["datasets"] = {
        task: {"file": f"{task}.csv", "target": "regression", "units": "1"} for task in REGRESSIONS
    }
    values["related"] = [["carbons", "length"]]
    for section in ("alignment_by_task", "compare", "one_pass"):
        values.pop(section)
    file = folder / "pico.yaml"
    file.write_text(yaml.safe_dump(values | sections))
    return Run(load_config(file), 0, folder / "data", folder / "work", torch.device("cpu"))


def _count(smiles: str, letter: str | None) -> float:
    return len(smiles) / 3 if letter is None else smiles.upper().count(letter) + len(smiles) / 50
