import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open

from merging.config.reading import read_config
from merging.families.graphs import GRAPHS
from merging.family import Folders
from merging.training.instance_discrimination import (
    InstanceConfig,
    contrast,
    draw_views,
    pretrain_network,
)
from merging.training.pretraining import PRETRAIN_CONFIG_FOLDER, load_pretrain_config
from models.errors import CheckpointError
from models.state_dict import read_tensors
from tests.merging.graph_files import make_config
from tests.merging.structures import write_collection, write_network

CPU = torch.device("cpu")
NETWORK = {"kind": "pyg_gin", "in_dim": 49, "num_layers": 2, "hidden_dim": 8}


def config(data: Path, **changes: Any) -> InstanceConfig:
    write_network(data / "net", 30)
    ego = {"kind": "ego", "folder": "net", "labels": ["a", "b"], "above_median": True}
    values = {
        "setting": "pico",
        "network": NETWORK,
        "graphs": {"net": ego, "rings": write_collection(data, "text", 20)},
        "hops": 6,
        "epochs": 6,
        "batch_size": 10,
    }
    return InstanceConfig.model_validate(values | changes)


def test_contrast_is_the_cross_entropy_of_both_ways() -> None:
    first, second = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.manual_seed(0))
    loss, accuracy = contrast(first, 3 * second, 0.5)
    cosines = torch.nn.functional.cosine_similarity(first[:, None], second[None], dim=2)
    weights = (cosines / 0.5).exp()
    ways = (weights.diag() / weights.sum(dim) for dim in (0, 1))
    expected = -sum(way.log().mean() for way in ways) / 2
    assert torch.isclose(loss, torch.as_tensor(expected))
    assert accuracy == (cosines.argmax(1) == torch.arange(4)).double().mean()


def test_views_are_of_one_node_and_differ(tmp_path: Path) -> None:
    views = draw_views(config(tmp_path), tmp_path, 0)
    assert [len(graphs) for graphs in views] == [3] * 50
    assert any(len({graph.num_nodes for graph in graphs}) > 1 for graphs in views)
    assert all(graph.x[0, -1] == 1 for graphs in views for graph in graphs)


def test_the_loss_falls_and_the_file_says_how_it_was_made(tmp_path: Path) -> None:
    settings = config(tmp_path)
    path = pretrain_network(settings, tmp_path, tmp_path / "work", 0, CPU)
    with safe_open(path, "pt") as stream:
        record = json.loads(stream.metadata()["record"])
    losses = [epoch["loss"] for epoch in record["epochs"]]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert record["config"]["setting"] == "pico"
    assert set(record["sources"]) == {"net", "rings"}
    written = path.stat().st_mtime_ns
    assert pretrain_network(settings, tmp_path, tmp_path / "work", 0, CPU) == path
    assert path.stat().st_mtime_ns == written


def test_models_start_from_the_file(tmp_path: Path) -> None:
    settings = config(tmp_path)
    path = pretrain_network(settings, tmp_path, tmp_path / "work", 0, CPU)
    task = settings.graphs["net"].model_dump()
    run = make_config({"net": task}, network=NETWORK, pretrained=str(path))
    folders = Folders(tmp_path, tmp_path / "work")
    state = GRAPHS.initial_state(run, 0, folders)
    expected = {f"network.{key}": value for key, value in read_tensors(path).items()}
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], value) for key, value in expected.items())
    assert GRAPHS.initial_fingerprint(run, folders)
    wide = make_config({"net": task}, network=NETWORK | {"hidden_dim": 9}, pretrained=str(path))
    with pytest.raises(CheckpointError):
        GRAPHS.initial_state(wide, 0, folders)
    with pytest.raises(ValidationError, match="expected `shared`"):
        make_config({"net": task}, network=NETWORK, pretrained="x", initialisation="different")


def test_bundled_configurations_are_read_by_their_kind() -> None:
    assert load_pretrain_config(Path("structure_sage.yaml")) == read_config(
        Path("structure_sage.yaml"), InstanceConfig, PRETRAIN_CONFIG_FOLDER
    )
    with pytest.raises(ValidationError, match="structural features, 49"):
        InstanceConfig.model_validate(
            load_pretrain_config(Path("structure_sage.yaml")).model_dump()
            | {"network": NETWORK | {"in_dim": 4}}
        )
