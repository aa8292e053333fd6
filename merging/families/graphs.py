"""The family of graphs with numeric node features: PyG networks trained from random weights."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import torch
from pydantic import Field, model_validator
from torch import nn

from merging.config.base import Setting
from merging.config.training import GraphTrainingConfig
from merging.data.checkpoints import find_checkpoint
from merging.data.encoders import svd_encoder
from merging.data.files import sha256
from merging.data.graph_file import FileSpec, file_task
from merging.data.links import LinkSpec, link_task
from merging.data.planetoid import PlanetoidSpec, class_task, load_planetoid
from merging.data.structure_graphs import CollectionSpec, EgoSpec, structure_task
from merging.data.task_data import GraphTask
from merging.family import Folders, OfflineFamily, ScratchRunConfig, StateDict
from merging.mergers.registry import MergeConfig
from models.data.feature_graph import FeatureGraph
from models.data.schema import FeatureInput
from models.errors import DataError
from models.experts.expert import Expert
from models.names import Name, check_distinct
from models.networks.pyg import GraphNetwork, GraphNetworkConfig, GraphNetworkKind
from models.state_dict import load_tensors, read_tensors

TaskSpec = Annotated[
    PlanetoidSpec | FileSpec | LinkSpec | EgoSpec | CollectionSpec, Field(discriminator="kind")
]


class GraphConfig(ScratchRunConfig):
    """A run on tasks of graphs.

    Attributes:
        network: its `in_dim` is the width of the features, or the width that they are encoded to.
        pretrained: weights that all tasks start from: a file of `gmerging pretrain`, or the name of
            one that comes with the package; None for random weights.
        encoder: `none`: all tasks have features of width `in_dim`. `svd`: a task whose features
            are wider or narrower gets a fixed linear encoder (`merging.data.encoders`).
        tasks: descriptions of the tasks, by name.
    """

    network: GraphNetworkConfig
    pretrained: str | None = None
    encoder: Literal["none", "svd"] = "none"
    tasks: Annotated[dict[Name, TaskSpec], Field(min_length=1)]
    training: GraphTrainingConfig = GraphTrainingConfig()
    merge: MergeConfig = MergeConfig(method="weight_average")

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_distinct(self.tasks)
        if self.pretrained is not None and self.initialisation == "different":
            got = "initialisation: got `different` with `pretrained`"
            raise ValueError(f"{got}, expected `shared`: all tasks start from the same weights")
        return self

    def dataset_for(self, task: str) -> TaskSpec:
        """Return the description of a task's data."""
        return self.tasks[task]

    def initial_seed(self, task: str, seed: int) -> int:
        """Return the seed of a task's initial network; its own if they are `different`."""
        if self.initialisation == "shared":
            return seed
        return seed + 1000 * (1 + list(self.tasks).index(task))


class Graphs(OfflineFamily):
    """PyG networks with one linear head per task."""

    kinds = get_args(GraphNetworkKind)
    config = GraphConfig
    config_folder = "graphs"
    unserved_data = ("link",)
    default_mergers = (MergeConfig(method="weight_average"), MergeConfig(method="gnnmerge_pp"))

    def read(self, config: GraphConfig, task: str, folders: Folders, seed: int) -> GraphTask:
        """Read a task's data and encode its features if they need an encoder.

        Args:
            config: configuration of the run.
            task: name of the task.
            folders: folders of the run.
            seed: seed of random splits.

        Raises:
            DataError: a file is missing or invalid, or its features do not fit the network.
        """
        loaded: GraphTask = _load(config.tasks[task], folders, seed)
        if loaded.num_features == config.network.in_dim:
            return loaded
        if config.encoder == "none":
            expected = f"{config.network.in_dim}, the network's `in_dim` (or `encoder: svd`)"
            found = f"got {loaded.num_features} features for each node"
            raise DataError(f"task {task!r}: {found}, expected {expected}")
        features = torch.cat([loaded.graphs[k].x for k in loaded.training_graphs().tolist()])
        return encode_features(loaded, svd_encoder(features, config.network.in_dim))

    def network(self, shape: GraphNetworkConfig, dropout: float = 0.0) -> GraphNetwork:
        """Build the network with random weights."""
        return GraphNetwork(shape, dropout)

    def initial_state(self, config: GraphConfig, seed: int, folders: Folders) -> StateDict:
        """Return the weights that training starts from: pre-trained, or random by the seed. Raises
        CheckpointError: there is no such file, or its network has another shape."""
        if config.pretrained is None:
            return super().initial_state(config, seed, folders)
        path, network = self._checkpoint(config.pretrained, folders), self.network(config.network)
        load_tensors(network, read_tensors(path), str(path))
        return {f"network.{key}": value for key, value in network.state_dict().items()}

    def initial_fingerprint(self, config: GraphConfig, folders: Folders) -> str:
        """Return the digest of the pre-trained weights; empty for random ones."""
        if config.pretrained is None:
            return ""
        return sha256(self._checkpoint(config.pretrained, folders))

    def _checkpoint(self, weights: str, folders: Folders) -> Path:
        return find_checkpoint(weights, folders.work, folders.data)

    def data_settings(self, config: GraphConfig, task: str) -> tuple[Setting, ...]:
        """Return the description of a task's data, and the encoder."""
        return config.dataset_for(task), config.encoder

    def expert(
        self, config: GraphConfig, data: GraphTask, head: StateDict, adapters: StateDict
    ) -> Expert:
        """Build a task's expert: its head, and its encoder if it has one."""
        info = data.info
        head_settings = info.labels, info.level, info.output_kind, data.num_features
        expert = Expert(config.network, 0, *head_settings)
        load_tensors(expert.head, head, "head")
        if data.encoder is not None and expert.encoder is not None:
            load_tensors(expert.encoder, data.encoder.state_dict(), "encoder")
        return expert

    def input_schema(
        self, experts: Mapping[str, Expert], data: Mapping[str, GraphTask]
    ) -> FeatureInput:
        """Return the schema of graphs: the number of node features, by task."""
        return FeatureInput(num_features={name: task.num_features for name, task in data.items()})

    def step_expert(self, expert: Expert) -> Expert:
        """Return the expert without its encoder, which has been applied to the data already."""
        plain = deepcopy(expert)
        plain.encoder = None
        return plain

    def card_introduction(self, manifest: Any) -> str:
        """Return what was merged, and the number of features that a node of every task has."""
        config = manifest.provenance["config"]
        shape, several = config["network"], len(manifest.tasks)
        encoder = ", and an encoder for its features" if config["encoder"] != "none" else ""
        widths = ", ".join(f"{task} {n}" for task, n in manifest.input.num_features.items())
        return f"""\
One network ({shape["kind"]}, {shape["num_layers"]} layers x {shape["hidden_dim"]}) merged from
{several} separately trained models; each task keeps its own head{encoder}. There are no adapters.

A node is given as numbers, in the order of the training data; by task so many: {widths}."""

    def card_limitations(self, manifest: Any) -> str:
        """Return the limits: answers on graphs seen in training are partly remembered."""
        return """\
The answers are about graphs like those of the training data; on a graph that was seen in training
they are partly remembered. For a citation graph the features are a bag of words in the data set's
own vocabulary."""


GRAPHS = Graphs()


def encode_features(data: GraphTask, encoder: nn.Linear) -> GraphTask:
    """Return the task with its node features encoded: (N, F) -> (N, in_dim)."""
    graphs = tuple(FeatureGraph(encoder(graph.x), graph.edge_index) for graph in data.graphs)
    return replace(data, graphs=graphs, encoder=encoder)


def _load(spec: Any, folders: Folders, seed: int) -> Any:
    if spec.kind == "file":
        return file_task(spec, folders.data, seed)
    if spec.kind in ("ego", "collection"):
        return structure_task(spec, folders.data, seed)
    dataset = load_planetoid(spec.graph, folders.data)
    return (link_task if spec.kind == "link" else class_task)(spec, dataset, seed)
