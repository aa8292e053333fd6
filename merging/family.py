"""The interface of a family of models for training, merging and evaluation.

`merging.families` has one file per family, and one table of them. The defaults here serve most
families: a linear head per task, and loss and metrics by the task's target.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from numpy.typing import NDArray
from pydantic import BaseModel, model_validator
from torch import Tensor, nn

from merging.config.base import ReleaseConfig, Section, Setting
from merging.config.training import AlignmentConfig, Initialisation, TrainingConfig, TuningConfig
from merging.data.pool import Pool
from merging.data.task_data import Step
from merging.mergers.base import MergeResult
from merging.mergers.registry import MergeConfig
from merging.targets import label_scores, losses, metrics
from models.data.batch import mean_readout, pair_scores
from models.errors import ConfigError
from models.experts.router import RouterConfig
from models.families.base import TaskOutput
from models.meaning import Counted, TaskText
from models.names import Name
from models.state_dict import load_tensors
from models.task import Level, TaskInfo

StateDict = dict[str, Tensor]
ReleaseMethod = Literal["adapters", "one-pass"]
"""What a release answers with: the merged backbone with adapters by task (or without, where none
are trained), or one shared stream (joint alignment)."""
SHARED_STREAM = "one-pass"
"""Name of the shared stream in an artifact."""


@dataclass(frozen=True)
class Folders:
    """The folders of a run.

    Attributes:
        data: the data folder.
        work: the work folder.
        workers: number of processes that read molecules.
    """

    data: Path
    work: Path
    workers: int = 1


class RunConfig(Section):
    """The configuration of a run; every family has its own subclass.

    Attributes:
        setting: name of the configuration and of its results.
        merge: the merger and its options.
        release: name and version of the artifact; needed only by commands that write one.
        meanings: by task what its labels mean: texts, or the name of a set that comes with the
            package (`merging.meanings`). A release measures the labels of these tasks.
        tasks: names of the tasks, or their descriptions by name.
    """

    setting: Name
    description: str = ""
    merge: MergeConfig = MergeConfig()
    release: ReleaseConfig | None = None
    meanings: dict[Name, Name | TaskText] = {}
    tasks: Any

    @model_validator(mode="after")
    def _check_meanings(self) -> Self:
        if unknown := [task for task in self.meanings if task not in self.tasks]:
            raise ValueError(f"meanings: got {unknown[0]!r}, expected names among {[*self.tasks]}")
        return self

    def meaning_of(self, task: str) -> Name | TaskText | None:
        """Return the entry of a task in `meanings`, or None."""
        return self.meanings.get(task)

    @property
    def shape(self) -> Any:
        """Shape of the network."""
        raise NotImplementedError

    @property
    def rank(self) -> int:
        """Rank of the adapters; 0 if there are none."""
        return 0

    @property
    def routing(self) -> RouterConfig:
        """Settings of the router that mixes the adapters."""
        return RouterConfig()

    @property
    def shares_stream(self) -> bool:
        """Whether a release answers all tasks with one shared stream (joint alignment)."""
        return False

    @property
    def adapted(self) -> bool:
        """Whether a release has adapters: of every task, or of the tasks of a shared stream."""
        return self.rank > 0 or self.shares_stream

    @property
    def head_tuning(self) -> TuningConfig | None:
        """Settings for training the heads on the merged network; None leaves them as merged."""
        return None

    @property
    def imitation(self) -> TrainingConfig | None:
        """Settings for training the merged network and all heads to answer like the teachers; None
        leaves them as merged."""
        return None

    @property
    def joint_training(self) -> TrainingConfig | None:
        """Settings for training one network on all tasks; None if there is no such baseline."""
        return None

    def dataset_for(self, task: str) -> BaseModel:
        """Return the section that describes a task's data."""
        raise NotImplementedError

    def training_for(self, task: str) -> TrainingConfig:
        """Return the training settings of a task's own model."""
        raise NotImplementedError

    def alignment_for(self, task: str) -> AlignmentConfig:
        """Return the training settings of a task's adapters."""
        raise NotImplementedError

    def initial_seed(self, task: str, seed: int) -> int:
        """Return the seed of a task's initial weights in a run with the given seed."""
        return seed

    def check_variants(self) -> None:
        """Validate the ablations and sweeps. Raises ConfigError: one of them is invalid."""

    def require_release(self) -> ReleaseConfig:
        """Return name and version of the artifact. Raises ConfigError: there is no `release`."""
        if self.release is None:
            raise ConfigError(
                f"release: got none in configuration {self.setting!r}, expected a name of its own "
                "(it is not inherited by `extends`): "
                f"write `release: {{name: {self.setting}, version: 1.0.0}}` into it"
            )
        return self.release


def check_alignment(common: AlignmentConfig, by_task: Mapping[str, AlignmentConfig]) -> None:
    """Raise ValueError if the adapters of tasks have different ranks."""
    ranks = {common.rank, *(own.rank for own in by_task.values())}
    if len(ranks) > 1:
        raise ValueError(
            f"alignment: got ranks {sorted(ranks)}, expected one rank for all tasks (the bank"
            " stacks them)"
        )


class ScratchRunConfig(RunConfig):
    """A run whose models start from random weights and share their training settings.

    Attributes:
        network: shape of the network.
        initialisation: whether all tasks start from the same random weights, or each from its own.
        training: settings of every task's own model and of joint training.
    """

    network: Any
    initialisation: Initialisation = "shared"
    training: Any

    @property
    def shape(self) -> Any:
        """Shape of the network."""
        return self.network

    @property
    def joint_training(self) -> Any:
        """`training`: joint training takes as many epochs as a task's own."""
        return self.training

    def training_for(self, task: str) -> Any:
        """Return `training`, whatever the task."""
        return self.training


def random_state(seed: int, **builders: Callable[[], nn.Module]) -> StateDict:
    """Return the random weights of modules, built in the given order, as `<name>.<key>`; they
    depend on the seed alone, and torch's generator stays as it was."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return {
            f"{name}.{key}": value
            for name, build in builders.items()
            for key, value in build().state_dict().items()
        }


class OfflineFamily(ABC):
    """A family of models for training, merging and evaluation.

    Attributes:
        kinds: the `kind` values of the family's networks.
        config: class of the family's run configurations.
        config_folder: folder of the bundled configurations, below `configs`.
        of_molecules: whether the graphs are molecules that are written as SMILES, with which
            `plan`, `ablate`, `add-task` and the tables of results work.
        batch_norm: whether networks have BatchNorm, whose statistics a task's stream has its own
            of.
        pool_rule: how graphs of a pool are read and told apart; results depend on it.
        default_mergers: mergers that `gmerging compare` measures besides the configured one.
        calibration_batch, evaluation_batch: graphs per batch.
    """

    kinds: ClassVar[tuple[str, ...]]
    config: ClassVar[type[RunConfig]]
    config_folder: ClassVar[str] = ""
    of_molecules: ClassVar[bool] = False
    batch_norm: ClassVar[bool] = False
    pool_rule: ClassVar[str] = ""
    default_mergers: ClassVar[tuple[MergeConfig, ...]] = (MergeConfig(method="weight_average"),)
    calibration_batch: ClassVar[int] = 32
    evaluation_batch: ClassVar[int] = 256

    @abstractmethod
    def read(self, config: Any, task: str, folders: Folders, seed: int) -> Any:
        """Read a task's data as a `TaskData`. Raises DataError: a file is missing or invalid."""

    def smiles(self, config: Any, data: Any, folders: Folders) -> list[str]:
        """Return the SMILES of a task's graphs, for fingerprints. Raises ConfigError: see
        `source_molecules`."""
        return list(self.source_molecules(config, data, folders).values())

    def source_molecules(self, config: Any, data: Any, folders: Folders) -> dict[int, str]:
        """Return the SMILES of a task's graphs as written in its source, by line of the source.
        Raises ConfigError: the family's graphs are no molecules."""
        got = f"got a configuration of networks of kind {config.shape.kind!r}"
        raise ConfigError(f"{got}, whose graphs have no fingerprints, expected one of molecules")

    def check_pool(self, data: Mapping[str, Any]) -> None:
        """Check that all graphs of a pool can be asked of the teachers of all tasks. Raises
        ConfigError: they cannot."""
        return

    def pool_items(self, config: Any, data: Any, folders: Folders) -> Mapping[str, Sequence[Any]]:
        """Return the unlabelled graphs of a task for a pool, by subset, as `make_pool` takes
        them."""
        raise NotImplementedError

    def make_pool(
        self,
        config: Any,
        sources: Mapping[str, Sequence[Any]],
        left_out: Sequence[Any],
        seed: int,
        workers: int,
    ) -> Pool:
        """Make the pool of joint alignment, of `config.one_pass.pool.size`.

        Args:
            config: configuration of the run.
            sources: `pool_items`, or molecules of files, by source.
            left_out: items that must not be in the pool.
            seed: of the draw.
            workers: number of processes that read molecules.

        Raises:
            DataError: no graph is left.
        """
        raise NotImplementedError

    @abstractmethod
    def network(self, shape: Any, dropout: float = 0.0) -> nn.Module:
        """Build the network to be merged, with random weights."""

    def initial_state(self, config: Any, seed: int, folders: Folders) -> StateDict:
        """Return the weights that training starts from: `network.*`, and `head.*` if all heads
        start alike. By default a random network, which depends on the seed alone."""
        return random_state(seed, network=lambda: self.network(config.shape))

    def initial_fingerprint(self, config: Any, folders: Folders) -> str:
        """Return what the initial weights depend on besides shape and seed, such as the digest of
        a checkpoint."""
        return ""

    def data_settings(self, config: Any, task: str) -> tuple[Setting, ...]:
        """Return the settings that a task's data depend on, besides its files."""
        return (config.dataset_for(task),)

    def joint_data(self, data: Any, settings: Any) -> Any:
        """Return a task's data as joint training uses them."""
        return data

    def imitated_data(self, data: Any, network: Any, head: Any, device: torch.device) -> Any:
        """Return a task's data with the answers of its own model in place of the labels of training
        and validation; no label is left in them."""
        raise NotImplementedError

    def calibration_graphs(self, config: Any) -> int:
        """Return the number of a task's training graphs that a merger may use."""
        return 256

    def head(self, shape: Any, data: Any) -> nn.Module:
        """Build a task's head with random weights."""
        return nn.Linear(shape.hidden_dim, data.outputs)

    def prepare_head(self, network: Any, head: Any, data: Any) -> None:
        """Set the constants of a head that follow from the training labels, in place."""
        return

    def start_head(self, network: Any, head: Any, data: Any, settings: Any) -> None:
        """Set the weights of a head that its training settings ask to start from, in place."""
        return

    def tuned_parameters(self, head: Any) -> Iterable[nn.Parameter]:
        """Return the parameters of a head that are trained while the network is frozen."""
        parameters: Iterable[nn.Parameter] = head.parameters()
        return parameters

    def outputs(self, network: Any, head: Any, batch: Any, info: TaskInfo, training: bool) -> Any:
        """Compute the head's outputs for a batch: (G, C), from the mean over each graph's nodes,
        (N, C) for a task on nodes, or (P, 1) for one on pairs of nodes."""
        h = network(batch)
        if info.level == "pair":
            return pair_scores(head(h), batch)
        return head(h if info.level == "node" else mean_readout(h, batch))

    def loss(self, outputs: Any, labels: Any, data: Any, head: Any, settings: Any) -> Tensor:
        """Compute the training loss of one batch."""
        return losses.compute_loss(outputs, labels, data.info)

    def score(self, outputs: Any, labels: Any, info: TaskInfo) -> float:
        """Compute the score that selects the best epoch; greater is better."""
        return metrics.compute_score(outputs.numpy(), labels.numpy(), info)

    def metrics(self, outputs: Any, labels: Any, info: TaskInfo) -> dict[str, float]:
        """Compute the reported metrics by name."""
        return metrics.compute_metrics(outputs.numpy(), labels.numpy(), info)

    def table_metrics(self, info: TaskInfo) -> tuple[str, ...]:
        """Return the names of the metrics shown in tables, the main one first."""
        return (info.main_metric,)

    def counted(self, info: TaskInfo) -> Counted:
        """Return what has the labels of a task."""
        by_level: dict[Level, Counted] = {"graph": "graphs", "node": "nodes", "pair": "pairs"}
        return by_level[info.level]

    def label_columns(self, labels: Any, info: TaskInfo) -> list[NDArray[Any]]:
        """Return the known values by label (`merging.targets.label_scores.label_columns`)."""
        return label_scores.label_columns(labels.numpy(), info)

    def label_measures(
        self, predictions: Any, labels: Any, info: TaskInfo
    ) -> list[label_scores.LabelMeasures]:
        """Return by label what its scores are computed from.

        Args:
            predictions: of the labelled rows, as an artifact answers: probabilities, or numbers.
            labels: of these rows, as the head learns them.
            info: the task.
        """
        return label_scores.label_measures(predictions.numpy(), labels.numpy(), info)

    def concatenate(self, values: Sequence[Any]) -> Any:
        """Concatenate the outputs or labels of several batches."""
        return torch.cat(list(values))

    def step_expert(self, expert: Any) -> Any:
        """Return an artifact's expert as it answers batches of `TaskData.steps`; the expert itself
        unless these differ from what the artifact takes."""
        return expert

    def served(self, output: TaskOutput) -> Any:
        """Return the predictions of an artifact's model for a batch, in the form of `outputs`."""
        return output.values

    @torch.no_grad()
    def predict(
        self, forward: Callable[[Any], Any], steps: Sequence[Step], device: torch.device
    ) -> tuple[Any, Any]:
        """Return the outputs of `forward` on all labelled rows of the steps, and their labels, both
        on the CPU."""
        outputs = [step.select(forward(step.batch.to(device)).to("cpu")) for step in steps]
        return self.concatenate(outputs), self.concatenate([step.labels for step in steps])

    def merged_head(
        self,
        shape: Any,
        merged: MergeResult,
        task: str,
        teacher: tuple[StateDict, StateDict],
        batches: Callable[[], Sequence[Any]],
    ) -> StateDict:
        """Return a task's head for the merged network, computed without labels.

        Args:
            shape: shape of the network.
            merged: the merger's result.
            task: name of the task.
            teacher: state dicts of the task's own network and head.
            batches: loads training graphs, for families that need them.
        """
        return merged.head_for(task, teacher[1])

    def load_model(
        self, shape: Any, network: StateDict, head: StateDict, data: Any
    ) -> tuple[nn.Module, nn.Module]:
        """Build network and head with the given weights, frozen and in evaluation mode. Raises
        CheckpointError: names or shapes of the weights differ from the modules'."""
        modules = self.network(shape), self.head(shape, data)
        load_tensors(modules[0], network, "a network")
        load_tensors(modules[1], head, f"a head of {', '.join(data.info.labels[:3])}")
        for module in modules:
            module.requires_grad_(False).eval()
        return modules

    def expert(self, config: Any, data: Any, head: StateDict, adapters: StateDict) -> nn.Module:
        """Build a task's expert: the modules that the artifact stores for this task."""
        raise NotImplementedError

    def input_schema(self, experts: Mapping[str, Any], data: Mapping[str, Any]) -> Any:
        """Return the artifact's input schema (`models.data.schema`); None for molecules."""
        return None

    def provenance(self, config: Any, folders: Folders) -> dict[str, Any]:
        """Return provenance for the manifest besides configuration, seed and data."""
        return {}

    def card_introduction(self, manifest: Any) -> str:
        """Return the first paragraph of the model card: what was merged, and what an answer is."""
        raise NotImplementedError

    def card_limitations(self, manifest: Any) -> str:
        """Return the last paragraph of the model card: the limits of the model's answers."""
        raise NotImplementedError
