"""Graphs with any numeric node features, offline: PyG's networks, trained from random weights."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, Self, get_args

import torch
from pydantic import Field, model_validator
from torch import nn

from merging.config.base import Setting
from merging.config.training import GraphTrainingConfig, Initialisation
from merging.data.encoders import svd_encoder
from merging.data.graph_file import FileSpec, file_task
from merging.data.links import LinkSpec, link_task
from merging.data.planetoid import PlanetoidSpec, class_task, load_planetoid
from merging.data.task_data import GraphTask
from merging.family import Folders, OfflineFamily, RunConfig, StateDict
from merging.mergers.registry import MergeConfig
from models.data.feature_graph import FeatureGraph
from models.data.schema import FeatureInput
from models.errors import DataError
from models.experts.expert import Expert
from models.names import Name, check_distinct
from models.networks.pyg import GraphNetwork, GraphNetworkConfig, GraphNetworkKind
from models.state_dict import load_tensors

TaskSpec = Annotated[PlanetoidSpec | FileSpec | LinkSpec, Field(discriminator="kind")]


class GraphConfig(RunConfig):
    """Tasks on graphs, one network for all of them.

    Attributes:
        network: its shape; `in_dim` is the width that the tasks' features have, or are brought to.
        encoder: `none`: all tasks have features of that width. `svd`: a task with others gets a
            fixed linear encoder (`merging.data.encoders`).
        tasks: by name.
        initialisation: whether all tasks start from the same random weights, or each from its own.
    """

    network: GraphNetworkConfig
    encoder: Literal["none", "svd"] = "none"
    tasks: Annotated[dict[Name, TaskSpec], Field(min_length=1)]
    initialisation: Initialisation = "shared"
    training: GraphTrainingConfig = GraphTrainingConfig()
    merge: MergeConfig = MergeConfig(method="weight_average")

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_distinct(self.tasks)
        return self

    @property
    def shape(self) -> GraphNetworkConfig:
        """The network's."""
        return self.network

    @property
    def joint_training(self) -> GraphTrainingConfig:
        """As long as that of each task."""
        return self.training

    def dataset_for(self, task: str) -> PlanetoidSpec | FileSpec | LinkSpec:
        """What the task's data are."""
        return self.tasks[task]

    def training_for(self, task: str) -> GraphTrainingConfig:
        """The same for every task."""
        return self.training

    def initial_seed(self, task: str, seed: int) -> int:
        """Of the weights that a task's network starts from."""
        if self.initialisation == "shared":
            return seed
        return seed + 1000 * (1 + list(self.tasks).index(task))


class Graphs(OfflineFamily):
    """Networks of PyG with a linear head for each task."""

    kinds = get_args(GraphNetworkKind)
    config = GraphConfig
    folder = "graphs"
    unserved = ("link",)
    compared = (MergeConfig(method="weight_average"), MergeConfig(method="gnnmerge_pp"))

    def read(self, config: GraphConfig, task: str, folders: Folders, seed: int) -> GraphTask:
        """A task's data, with its encoder applied; `seed` is of random splits.

        Raises:
            DataError: a file is absent or wrong, or its features do not fit the network.
        """
        loaded: GraphTask = _load(config.tasks[task], folders, seed)
        if loaded.num_features == config.network.in_dim:
            return loaded
        if config.encoder == "none":
            expected = f"{config.network.in_dim}, the network's `in_dim` (or `encoder: svd`)"
            found = f"got {loaded.num_features} features for each node"
            raise DataError(f"task {task!r}: {found}, expected {expected}")
        seen = torch.cat([loaded.graphs[k].x for k in loaded.training_graphs().tolist()])
        encoder = svd_encoder(seen, config.network.in_dim)
        return encoded(loaded, encoder)

    def network(self, shape: GraphNetworkConfig, dropout: float = 0.0) -> GraphNetwork:
        """With random weights."""
        return GraphNetwork(shape, dropout)

    def initial(self, config: GraphConfig, seed: int, folders: Folders) -> StateDict:
        """Random weights of the network, by the seed alone."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            state = self.network(config.network).state_dict()
            return {f"network.{key}": value for key, value in state.items()}

    def settings(self, config: GraphConfig, task: str) -> tuple[Setting, ...]:
        """The description of the data, and whether they are encoded."""
        return config.dataset_for(task), config.encoder

    def expert(
        self, config: GraphConfig, data: GraphTask, head: StateDict, adapters: StateDict
    ) -> Expert:
        """A task's head, and its encoder if it has one."""
        info = data.info
        asked = info.labels, info.level, info.target, data.num_features
        expert = Expert(config.network, 0, *asked)
        load_tensors(expert.head, head, "head")
        if data.encoder is not None and expert.encoder is not None:
            load_tensors(expert.encoder, data.encoder.state_dict(), "encoder")
        return expert

    def takes(self, experts: Mapping[str, Expert], data: Mapping[str, GraphTask]) -> FeatureInput:
        """How many numbers a node of each task has."""
        widths = {task: own.num_features for task, own in data.items()}
        return FeatureInput(num_features=widths)

    def about(self, manifest: Any) -> str:
        """What was merged, and what a node is given as."""
        config = manifest.provenance["config"]
        shape, several = config["network"], len(manifest.tasks)
        encoder = ", and an encoder for its features" if config["encoder"] != "none" else ""
        widths = ", ".join(f"{task} {n}" for task, n in manifest.input.num_features.items())
        return f"""\
One network ({shape["kind"]}, {shape["num_layers"]} layers x {shape["hidden_dim"]}) merged from
{several} separately trained models; each task keeps its own head{encoder}. There are no adapters.

A node is given as numbers, in the order of the training data; by task so many: {widths}."""

    def limits(self, manifest: Any) -> str:
        """That training graphs are remembered."""
        return """\
The answers are about graphs like those of the training data; on a graph that was seen in training
they are partly remembered. For a citation graph the features are a bag of words in the data set's
own vocabulary."""


GRAPHS = Graphs()


def encoded(data: GraphTask, encoder: nn.Linear) -> GraphTask:
    """The same task with its features encoded."""
    graphs = tuple(FeatureGraph(encoder(graph.x), graph.edge_index) for graph in data.graphs)
    return replace(data, graphs=graphs, encoder=encoder)


def _load(spec: Any, folders: Folders, seed: int) -> Any:
    if spec.kind == "file":
        return file_task(spec, folders.data, seed)
    dataset = load_planetoid(spec.graph, folders.data)
    return (link_task if spec.kind == "link" else class_task)(spec, dataset, seed)
