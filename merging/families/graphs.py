"""The family of graphs with numeric node features: PyG networks trained from random weights."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import torch
from pydantic import Field, model_validator
from torch import nn

from merging.config.base import Setting, complete_by_task
from merging.config.joint_alignment import JointAlignmentConfig
from merging.config.training import AlignmentConfig, GraphTrainingConfig
from merging.data.checkpoints import find_checkpoint
from merging.data.encoders import svd_encoder
from merging.data.files import sha256
from merging.data.gcc_encoder import read_start
from merging.data.graph_file import FileSpec, file_task
from merging.data.links import LinkSpec, link_task
from merging.data.planetoid import PlanetoidSpec, class_task, load_planetoid
from merging.data.pool import Pool, make_feature_pool
from merging.data.structure_graphs import CollectionSpec, EgoSpec, structure_task
from merging.data.task_data import AnswerTask, GraphTask
from merging.family import (
    SHARED_STREAM,
    Folders,
    OfflineFamily,
    ReleaseMethod,
    ScratchRunConfig,
    StateDict,
    check_alignment,
)
from merging.mergers.registry import MergeConfig
from models.data.feature_graph import FeatureGraph
from models.data.schema import FeatureInput
from models.errors import ConfigError, DataError
from models.experts.expert import Expert, TaskExpert
from models.experts.router import RouterConfig
from models.names import Name, check_distinct
from models.networks.pyg import GraphNetwork, GraphNetworkConfig, GraphNetworkKind
from models.state_dict import load_tensors

TaskSpec = Annotated[
    PlanetoidSpec | FileSpec | LinkSpec | EgoSpec | CollectionSpec, Field(discriminator="kind")
]


class GraphConfig(ScratchRunConfig):
    """A run on tasks of graphs.

    Attributes:
        network: its `in_dim` is the width of the features, or the width that they are encoded to.
        pretrained: weights that all tasks start from: a file of `gmerging pretrain`, or the name of
            one that comes with the package; an encoder of GCC's (`merging.data.gcc_encoder`); None
            for random weights.
        encoder: `none`: all tasks have features of width `in_dim`. `svd`: a task whose features
            are wider or narrower gets a fixed linear encoder (`merging.data.encoders`).
        tasks: descriptions of the tasks, by name.
        alignment: settings of adapter training; None trains no adapters.
        alignment_by_task: the same for tasks that differ; a section names only the differences.
        router: settings of the router that mixes the adapters.
        one_pass: settings of joint alignment; None if the run has none.
        method: what a release answers with.
    """

    network: GraphNetworkConfig
    pretrained: str | None = None
    encoder: Literal["none", "svd"] = "none"
    tasks: Annotated[dict[Name, TaskSpec], Field(min_length=1)]
    training: GraphTrainingConfig = GraphTrainingConfig()
    merge: MergeConfig = MergeConfig(method="weight_average")
    alignment: AlignmentConfig | None = None
    alignment_by_task: dict[Name, AlignmentConfig] = {}
    router: RouterConfig = RouterConfig()
    one_pass: JointAlignmentConfig | None = None
    method: ReleaseMethod = "adapters"

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, values: Any) -> Any:
        """Complete the sections by task with the values of the common section."""
        return complete_by_task(values, "alignment")

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_distinct([*self.tasks, SHARED_STREAM] if self.shares_stream else self.tasks)
        named = {*self.alignment_by_task, *(self.one_pass.named_tasks if self.one_pass else ())}
        if unknown := sorted(named - self.tasks.keys()):
            expected = f"expected names among tasks {[*self.tasks]}"
            raise ValueError(f"settings by task: got names {unknown}, {expected}")
        if self.alignment is not None:
            check_alignment(self.alignment, self.alignment_by_task)
        elif self.alignment_by_task:
            raise ValueError("alignment_by_task: got it without `alignment`, expected both")
        if self.one_pass is None and self.shares_stream:
            raise ValueError("method: got no section `one_pass`, expected its settings")
        if self.one_pass is not None and self.one_pass.pool.files:
            got = f"got {list(self.one_pass.pool.files)}, which are files of molecules"
            raise ValueError(f"one_pass.pool.files: {got}, expected none: `tasks` have the graphs")
        if self.pretrained is not None and self.initialisation == "different":
            got = "initialisation: got `different` with `pretrained`"
            raise ValueError(f"{got}, expected `shared`: all tasks start from the same weights")
        return self

    @property
    def rank(self) -> int:
        """Rank of the adapters; 0 without `alignment`."""
        return 0 if self.alignment is None else self.alignment.rank

    @property
    def routing(self) -> RouterConfig:
        """Settings of the router that mixes the adapters."""
        return self.router

    @property
    def shares_stream(self) -> bool:
        """Whether `method` is `one-pass`."""
        return self.method == "one-pass"

    def alignment_for(self, task: str) -> AlignmentConfig:
        """Return the training settings of a task's adapters. Raises ConfigError: there are none."""
        settings = self.alignment_by_task.get(task, self.alignment)
        if settings is None:
            got = f"got no such section in configuration {self.setting!r}"
            raise ConfigError(f"alignment: {got}, expected the settings of adapters")
        return settings

    def dataset_for(self, task: str) -> TaskSpec:
        """Return the description of a task's data."""
        return self.tasks[task]

    def initial_seed(self, task: str, seed: int) -> int:
        """Return the seed of a task's initial network; its own if they are `different`."""
        if self.initialisation == "shared":
            return seed
        return seed + 1000 * (1 + list(self.tasks).index(task))


class Graphs(OfflineFamily):
    """PyG networks with one linear head per task, and adapters on the merged network."""

    kinds = get_args(GraphNetworkKind)
    config = GraphConfig
    config_folder = "graphs"
    pool_rule = "colour refinement"
    default_mergers = (
        MergeConfig(method="weight_average"),
        MergeConfig(method="message_calibration"),
        MergeConfig(method="gnnmerge_pp"),
    )

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
        load_tensors(network, read_start(path), str(path))
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
        """Build a task's expert: its head, its adapters, whose rank is read from the tensors (none:
        rank 0), and its encoder if it has one."""
        info, rank = data.info, adapters["sites.0.up"].shape[0] if adapters else 0
        head_settings = info.labels, info.level, info.output_kind, data.num_features, info.head_dim
        expert = Expert(config.network, rank, *head_settings)
        load_tensors(expert.head, head, "head")
        if adapters:
            load_tensors(expert.adapters, adapters, "adapters")
        if data.encoder is not None and expert.encoder is not None:
            load_tensors(expert.encoder, data.encoder.state_dict(), "encoder")
        return expert

    def input_schema(
        self, experts: Mapping[str, Expert], data: Mapping[str, GraphTask]
    ) -> FeatureInput:
        """Return the schema of graphs: the number of node features, by task, and which tasks
        answer for pairs of nodes."""
        return FeatureInput(
            num_features={name: task.num_features for name, task in data.items()},
            pair_tasks=tuple(name for name, task in data.items() if task.info.level == "pair"),
        )

    def check_pool(self, data: Mapping[str, GraphTask]) -> None:
        """Check that all graphs of a pool can be asked of the teachers of all tasks.

        Encoders have coordinates of their own: what one of them makes of a graph means nothing to
        the network behind another. A shared stream answers graphs.

        Raises:
            ConfigError: a task has an encoder, or is on nodes.
        """
        if encoded := [task for task, own in data.items() if own.encoder is not None]:
            got = f"got an encoder of the features of {encoded[0]}"
            raise ConfigError(f"one_pass: {got}, expected features that all tasks share")
        if nodes := [task for task, own in data.items() if own.info.level != "graph"]:
            got = f"got {nodes[0]}, which is on nodes"
            raise ConfigError(f"one_pass: {got}, expected tasks on graphs (`level: graph`)")

    def pool_items(
        self, config: GraphConfig, data: AnswerTask, folders: Folders
    ) -> dict[str, list[FeatureGraph]]:
        """Return the graphs of a task by subset; its labels are of graphs (`check_pool`)."""
        return {
            name: [data.graphs[k] for k in rows.tolist()] for name, rows in vars(data.split).items()
        }

    def make_pool(
        self,
        config: GraphConfig,
        sources: Mapping[str, Sequence[FeatureGraph]],
        left_out: Sequence[FeatureGraph],
        seed: int,
        workers: int,
    ) -> Pool:
        """Collect the graphs of a pool: see `merging.data.pool.make_feature_pool`."""
        size = None if config.one_pass is None else config.one_pass.pool.size
        return make_feature_pool(sources, left_out, size, seed, config.network.num_layers)

    def step_expert(self, expert: TaskExpert) -> TaskExpert:
        """Return the expert without its encoder, which has been applied to the data already."""
        if expert.encoder is None:
            return expert
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
{several} separately trained models; each task keeps its own head{encoder}. {_adapters(manifest)}

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


def _adapters(manifest: Any) -> str:
    """Say which adapters correct the merged network."""
    if manifest.streams:
        rank = next(iter(manifest.streams.values())).graph_rank
        return f"All tasks are\nanswered in one pass; each has a graph adapter of rank {rank}."
    if manifest.rank:
        sites = manifest.backbone.num_layers + 1
        return f"Every task\nhas adapters of rank {manifest.rank} at {sites} sites."
    return "There are no adapters."


def _load(spec: Any, folders: Folders, seed: int) -> Any:
    if spec.kind == "file":
        return file_task(spec, folders.data, seed)
    if spec.kind in ("ego", "collection"):
        return structure_task(spec, folders.data, seed)
    dataset = load_planetoid(spec.graph, folders.data)
    return (link_task if spec.kind == "link" else class_task)(spec, dataset, seed)
