"""What training, merging and measuring ask of a kind of model.

`merging.families` has one file for each kind, and one table of them. What is the same for most
kinds (a linear head for each task, losses and scores by what the answers are) is written here once.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from merging.config.base import ReleaseConfig, Section, Setting
from merging.config.training import AlignmentConfig, TrainingConfig, TuningConfig
from merging.data.task_data import Step
from merging.mergers.base import MergeResult
from merging.mergers.registry import MergeConfig
from merging.targets import losses, metrics
from models.data.batch import mean_readout
from models.errors import ConfigError
from models.experts.router import RouterConfig
from models.names import Name
from models.state_dict import load_tensors
from models.task import TaskInfo

StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class Folders:
    """Where a run reads and writes.

    Attributes:
        data: the data folder.
        work: the work folder.
        workers: processes for reading molecules.
    """

    data: Path
    work: Path
    workers: int = 1


class RunConfig(Section):
    """The configuration of a run, whatever the kind of model.

    Attributes:
        setting: its name, and that of its results.
        merge: how the networks are merged.
        release: what the artifact is called; needed only by commands that write one.
    """

    setting: Name
    description: str = ""
    merge: MergeConfig = MergeConfig()
    release: ReleaseConfig | None = None
    tasks: Any  # names, or descriptions by name: a family says which

    @property
    def shape(self) -> Any:
        """The network's."""
        raise NotImplementedError

    @property
    def rank(self) -> int:
        """Of the adapters; 0: there are none."""
        return 0

    @property
    def routing(self) -> RouterConfig:
        """How the adapters of several tasks are mixed."""
        return RouterConfig()

    @property
    def tuning_after(self) -> TuningConfig | None:
        """How the heads are trained on the merged network; None: they are not."""
        return None

    @property
    def joint_training(self) -> TrainingConfig | None:
        """How one network is trained on all tasks; None: it is not compared with."""
        return None

    def dataset_for(self, task: str) -> BaseModel:
        """The section that says what the task's data are."""
        raise NotImplementedError

    def training_for(self, task: str) -> TrainingConfig:
        """How a task's own model is trained."""
        raise NotImplementedError

    def alignment_for(self, task: str) -> AlignmentConfig:
        """How a task's adapters are trained."""
        raise NotImplementedError

    def initial_seed(self, task: str, seed: int) -> int:
        """Of the weights that a task's training starts from, in a run with that seed."""
        return seed

    def check_variants(self) -> None:
        """Raises ConfigError: a variant that the configuration describes does not fit."""

    def called(self) -> ReleaseConfig:
        """Name and version of the artifact. Raises ConfigError: there is no `release`."""
        if self.release is None:
            raise ConfigError(
                f"release: got none in configuration {self.setting!r}, expected a name of its own "
                "(what it extends hands on none): "
                f"write `release: {{name: {self.setting}, version: 1.0.0}}` into it"
            )
        return self.release


class OfflineFamily(ABC):
    """A kind of model, offline.

    Attributes:
        kinds: values of `kind` of the networks' shapes.
        config: the class of its configurations.
        folder: of those that come with the package, below `configs`.
        adapters: whether adapters are trained. False: artifacts have rank 0, and tasks cannot be
            added to them.
        unserved: kinds of data (`kind` of their sections) that are trained on and merged, but that
            no artifact answers.
        compared: mergers that `gmerging compare` measures where the configuration names none.
        calibration_batch, evaluation_batch: graphs in a batch.
    """

    kinds: ClassVar[tuple[str, ...]]
    config: ClassVar[type[RunConfig]]
    folder: ClassVar[str] = ""
    adapters: ClassVar[bool] = False
    unserved: ClassVar[tuple[str, ...]] = ()
    compared: ClassVar[tuple[MergeConfig, ...]] = (MergeConfig(method="weight_average"),)
    calibration_batch: ClassVar[int] = 32
    evaluation_batch: ClassVar[int] = 256

    @abstractmethod
    def read(self, config: Any, task: str, folders: Folders, seed: int) -> Any:
        """The `TaskData` of a task. Raises DataError: a file is absent or wrong."""

    @abstractmethod
    def network(self, shape: Any, dropout: float = 0.0) -> nn.Module:
        """The network that is merged, with random weights."""

    @abstractmethod
    def initial(self, config: Any, seed: int, folders: Folders) -> StateDict:
        """What training starts from: `network.*`, and `head.*` where all heads start alike."""

    def origin(self, config: Any, folders: Folders) -> str:
        """What `initial` depends on besides shape and seed: the checkpoint's digest, if there is
        one."""
        return ""

    def settings(self, config: Any, task: str) -> tuple[Setting, ...]:
        """What a task's data depend on, besides the files."""
        return (config.dataset_for(task),)

    def shared(self, data: Any, settings: Any) -> Any:
        """A task's data as they are seen where one network is trained on all tasks."""
        return data

    def calibration_graphs(self, config: Any) -> int:
        """How many training graphs of a task a merger may see."""
        return 256

    def head(self, shape: Any, data: Any) -> nn.Module:
        """What a task has of its own, with random weights."""
        return nn.Linear(shape.hidden_dim, data.outputs)

    def prepare(self, network: Any, head: Any, data: Any) -> None:
        """Set what a head takes from the training labels, before training; in place."""
        return

    def tuned_parameters(self, head: Any) -> Iterable[nn.Parameter]:
        """What is trained of a head where the network stays as it is."""
        found: Iterable[nn.Parameter] = head.parameters()
        return found

    def outputs(self, network: Any, head: Any, batch: Any, info: TaskInfo, training: bool) -> Any:
        """What the head says of a batch: (G, C), or (N, C) for a task on nodes. The mean over a
        graph's nodes is its embedding."""
        h = network(batch)
        return head(h if info.level == "node" else mean_readout(h, batch))

    def loss(self, outputs: Any, labels: Any, data: Any, head: Any, settings: Any) -> Tensor:
        """What training makes small, of one step."""
        return losses.compute_loss(outputs, labels, data.info)

    def score(self, outputs: Any, labels: Any, info: TaskInfo) -> float:
        """What epochs are compared by; the greater, the better."""
        return metrics.compute_score(outputs.numpy(), labels.numpy(), info)

    def metrics(self, outputs: Any, labels: Any, info: TaskInfo) -> dict[str, float]:
        """What is reported, by name, the main one first."""
        return metrics.compute_metrics(outputs.numpy(), labels.numpy(), info)

    def shown(self, info: TaskInfo) -> tuple[str, ...]:
        """Which of these metrics tables without averages show, the main one first."""
        return (metrics.MAIN_METRICS[info.target],)

    def together(self, values: Sequence[Any]) -> Any:
        """Outputs or labels of several batches as of one."""
        return torch.cat(list(values))

    @torch.no_grad()
    def answers(
        self, forward: Callable[[Any], Any], steps: Sequence[Step], device: torch.device
    ) -> tuple[Any, Any]:
        """Outputs of `forward` for the steps' batches, those that labels are of, and these labels;
        on the CPU."""
        outputs = [step.select(forward(step.batch.to(device)).to("cpu")) for step in steps]
        return self.together(outputs), self.together([step.labels for step in steps])

    def settle(
        self,
        shape: Any,
        merged: MergeResult,
        task: str,
        teacher: tuple[StateDict, StateDict],
        batches: Callable[[], Sequence[Any]],
    ) -> StateDict:
        """A task's head as the merged network needs it, without labels.

        Args:
            shape: of the network.
            merged: what the merger gave.
            task: whose head.
            teacher: state dicts of the task's own network and head.
            batches: gives some training graphs.
        """
        return merged.head_for(task, teacher[1])

    def model(
        self, shape: Any, network: StateDict, head: StateDict, data: Any
    ) -> tuple[nn.Module, nn.Module]:
        """Network and head with these weights, in evaluation mode. Raises CheckpointError."""
        made = self.network(shape), self.head(shape, data)
        load_tensors(made[0], network, "a network")
        load_tensors(made[1], head, f"a head of {', '.join(data.info.labels[:3])}")
        for module in made:
            module.requires_grad_(False).eval()
        return made

    def expert(self, config: Any, data: Any, head: StateDict, adapters: StateDict) -> nn.Module:
        """What a task brings to an artifact."""
        raise NotImplementedError

    def takes(self, experts: Mapping[str, Any], data: Mapping[str, Any]) -> Any:
        """What an artifact takes (`models.data.schema`); None: molecules."""
        return None

    def provenance(self, config: Any, folders: Folders) -> dict[str, Any]:
        """What the artifact was made from besides configuration, seed and data."""
        return {}

    def about(self, manifest: Any) -> str:
        """First paragraph of a model card: what was merged, and how an answer is asked for."""
        raise NotImplementedError

    def limits(self, manifest: Any) -> str:
        """Last paragraph of a model card: what the answers are no good for."""
        raise NotImplementedError
