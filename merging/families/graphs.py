"""The configuration of a run on graphs with any numeric node features: one YAML file, unknown keys
are errors."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator

from merging.config.base import CONFIG_FOLDER, Section
from merging.config.reading import read_config
from merging.data.encoders import svd_encoder
from merging.data.graph_file import FileSpec, file_task
from merging.data.links import LinkSpec, LinkTask, link_task
from merging.data.planetoid import (
    PlanetoidSpec,
    class_task,
    load_planetoid,
)
from merging.data.task_data import AnswerTask
from merging.mergers.registry import MergeConfig
from merging.run.config import ReleaseConfig
from merging.training.settings import GraphTrainingConfig
from models.data.feature_graph import FeatureGraph
from models.errors import DataError
from models.names import Name, check_distinct
from models.networks.pyg import GraphNetworkConfig

GRAPHS_CONFIG_FOLDER = CONFIG_FOLDER / "graphs"
TaskSpec = Annotated[PlanetoidSpec | FileSpec | LinkSpec, Field(discriminator="kind")]


class GraphRunConfig(Section):
    """Tasks on graphs, one network for all of them.

    Attributes:
        network: its shape; `in_dim` is the width that the tasks' features have, or are brought to.
        encoder: `none`: all tasks have features of that width. `svd`: a task with others gets a
            fixed linear encoder (`merging.data.encoders`).
        tasks: by name.
        initialisation: whether all tasks start from the same random weights, or each from its own.
    """

    setting: Name
    description: str = ""
    network: GraphNetworkConfig
    encoder: Literal["none", "svd"] = "none"
    tasks: Annotated[dict[Name, TaskSpec], Field(min_length=1)]
    initialisation: Literal["shared", "different"] = "shared"
    training: GraphTrainingConfig = GraphTrainingConfig()
    merge: MergeConfig = MergeConfig(method="weight_average")
    release: ReleaseConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_distinct(self.tasks)
        return self


def load_graph_config(path: Path) -> GraphRunConfig:
    """Read a YAML file, or one that comes with the package, by name. Raises ConfigError (see
    `merging.config.reading.read_config`)."""
    return read_config(path, GraphRunConfig, GRAPHS_CONFIG_FOLDER)


TaskData = AnswerTask | LinkTask


def load_task(config: GraphRunConfig, task: str, data: Path, seed: int) -> TaskData:
    """A task's data, with its encoder applied.

    Args:
        config: of the run.
        task: one of its tasks.
        data: the data folder.
        seed: of random splits.

    Raises:
        DataError: a file is absent or wrong, or its features do not fit the network.
    """
    spec = config.tasks[task]
    loaded = _load(spec, data, seed)
    if loaded.num_features == config.network.in_dim:
        return loaded
    if config.encoder == "none":
        expected = f"{config.network.in_dim}, the network's `in_dim` (or `encoder: svd`)"
        raise DataError(
            f"task {task!r}: got {loaded.num_features} features for each node, expected {expected}"
        )
    encoder = svd_encoder(
        torch.cat([loaded.graphs[k].x for k in loaded.seen().tolist()]), config.network.in_dim
    )
    encoded = tuple(FeatureGraph(encoder(graph.x), graph.edge_index) for graph in loaded.graphs)
    return replace(loaded, graphs=encoded, encoder=encoder)


def _load(spec: TaskSpec, data: Path, seed: int) -> TaskData:
    if isinstance(spec, FileSpec):
        return file_task(spec, data, seed)
    dataset = load_planetoid(spec.graph, data)
    return (
        link_task(spec, dataset, seed)
        if isinstance(spec, LinkSpec)
        else class_task(spec, dataset, seed)
    )
