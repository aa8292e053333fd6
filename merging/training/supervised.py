"""Supervised training of a network with a head for each of one or several tasks; resumable after
every epoch. All kinds of models are trained here."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from merging.config.training import TrainingConfig
from merging.data.task_data import Step, TaskData
from merging.family import OfflineFamily, StateDict
from merging.targets.losses import LabelScale
from merging.targets.metrics import mean_of_defined
from merging.training.loop import ResumableTraining
from models.state_dict import sub_state

Trained = Literal["all", "heads"]


@dataclass(frozen=True)
class TrainedModel:
    """A network with a head for each task, at the best epoch.

    Attributes:
        network: state dict.
        heads: state dict by task; of a regression, a head answers in the units of the labels.
        record: epochs run, best epoch, validation score by epoch (the greater the better; mean over
            the tasks, also of each task, where there are several), gradient steps, seconds.
    """

    network: StateDict
    heads: dict[str, StateDict]
    record: dict[str, Any]


class MultitaskModel(nn.Module):
    """A network with a head for each task; with one task, the usual model.

    Attributes:
        tasks: data by task.
    """

    def __init__(
        self, family: OfflineFamily, shape: Any, tasks: Mapping[str, TaskData], dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.family, self.tasks = family, dict(tasks)
        self.network = family.network(shape, dropout)
        # by number: a ModuleDict refuses names with a dot
        self.heads = nn.ModuleList(family.head(shape, data) for data in tasks.values())

    def head(self, task: str) -> nn.Module:
        """A task's."""
        return self.heads[list(self.tasks).index(task)]

    def forward(self, batch: Any, task: str) -> Any:
        """What the task's head says."""
        info, head = self.tasks[task].info, self.head(task)
        return self.family.outputs(self.network, head, batch, info, self.training)


def untrained(
    family: OfflineFamily,
    shape: Any,
    tasks: Mapping[str, TaskData],
    initial: StateDict,
    seed: int,
    dropout: float = 0.0,
) -> MultitaskModel:
    """A model as training starts from it.

    Args:
        family, shape: kind and shape of the network.
        tasks: data by task.
        initial: `network.*`, and `head.*` where all heads start alike (`OfflineFamily.initial`).
        seed: of heads that start at random.
        dropout: in training.
    """
    torch.manual_seed(seed)
    model = MultitaskModel(family, shape, tasks, dropout)
    model.network.load_state_dict(sub_state(initial, "network."))
    start = sub_state(initial, "head.")
    for task, data in tasks.items():
        head = model.head(task)
        if start:
            head.load_state_dict(start)
        family.prepare(model.network, head, data)
    return model


def train(
    model: MultitaskModel,
    settings: TrainingConfig,
    seed: int,
    checkpoint: Path,
    device: torch.device | None = None,
    trained: Trained = "all",
) -> TrainedModel:
    """Train a model on its tasks and keep the epoch with the best validation score, mean over the
    tasks that have one (the earliest of equals); the last epoch where no task ever has one.

    An epoch shows every training row of every task once; a batch holds rows of one task.

    Args:
        model: is moved to the device and trained in place.
        settings: epochs and so on.
        seed: of the order of rows and dropout; each epoch draws from its own seed, so that a
            resumed run is the same run.
        checkpoint: where the state is kept after each epoch; removed by the caller once the result
            is stored.
        device: where to train; the CPU if not said.
        trained: all weights, or the heads alone.
    """
    device = device or torch.device("cpu")
    run = _Training(model.to(device), settings, device)
    optimizer = torch.optim.Adam(
        run.parameters(trained),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    training = ResumableTraining(model, optimizer, checkpoint, seed, device)
    for epoch in training.epochs(settings.epochs, f"{', '.join(model.tasks)}: epochs"):
        if settings.schedule == "cosine":
            factor = 1 + math.cos(math.pi * (epoch - 1) / settings.epochs)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * factor / 2
        loss = run.epoch(optimizer)
        by_task = [run.validate(task) for task in model.tasks]
        training.keep_best(epoch, mean_of_defined(by_task))
        training.kept["by_task"] = [*training.kept.get("by_task", []), by_task]
        best, valid = training.kept["best_epoch"], f"{training.history[-1]:.4f}"
        training.shown = {"loss": f"{loss:.4f}", "valid": valid, "best": best}
        if settings.patience and epoch - best >= settings.patience:
            break
    return run.result(training)


def epoch_steps(tasks: Mapping[str, TaskData], settings: TrainingConfig) -> list[tuple[str, Step]]:
    """The steps of one epoch with their tasks, in an order that is drawn from torch's generator."""
    steps = [
        (task, step)
        for task, data in tasks.items()
        for step in data.steps("train", settings.batch_size, shuffle=True)
    ]
    if not settings.shuffles_batches:
        return steps
    return [steps[k] for k in torch.randperm(len(steps)).tolist()]


def label_scale(data: TaskData) -> LabelScale | None:
    """The scale of a regression's training labels; None for other targets."""
    if data.info.target != "regression":
        return None
    return LabelScale.fit(data.info, (step.labels for step in data.steps("train", 2**20)))


def standardised(scale: LabelScale | None, values: Any) -> Any:
    """Labels or answers in standard deviations from the mean, if there is a scale."""
    return scale.standardise(values) if scale else values


class _Training:
    """The steps of an epoch, and what is made of the best one."""

    def __init__(
        self, model: MultitaskModel, settings: TrainingConfig, device: torch.device
    ) -> None:
        self.model, self.settings, self.device = model, settings, device
        self.steps = 0
        self.scales = {task: label_scale(data) for task, data in model.tasks.items()}

    def parameters(self, trained: Trained) -> list[nn.Parameter]:
        """Those that are trained; only these ask for gradients."""
        self.model.requires_grad_(trained == "all")
        for head in self.model.heads:
            for parameter in self.model.family.tuned_parameters(head):
                parameter.requires_grad_(True)
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def epoch(self, optimizer: torch.optim.Optimizer) -> float:
        """One gradient step for every batch of every task; returns the mean loss of the steps."""
        steps, losses = epoch_steps(self.model.tasks, self.settings), 0.0
        self.model.train()
        for task, step in steps:
            loss = self._loss(task, step)
            optimizer.zero_grad()  # to None: the other tasks' heads stay, Adam's momentum included
            loss.backward()
            optimizer.step()
            losses += float(loss.detach())
        self.steps = len(steps)
        return losses / len(steps)

    def _loss(self, task: str, step: Step) -> Tensor:
        model, data = self.model, self.model.tasks[task]
        outputs = step.select(model(step.batch.to(self.device), task))
        labels = standardised(self.scales[task], step.labels).to(self.device)
        return model.family.loss(outputs, labels, data, model.head(task), self.settings)

    def validate(self, task: str) -> float:
        """The validation score of a task."""
        model, data = self.model.eval(), self.model.tasks[task]
        steps = data.steps("valid", model.family.evaluation_batch)
        outputs, labels = model.family.answers(partial(model, task=task), steps, self.device)
        return model.family.score(outputs, standardised(self.scales[task], labels), data.info)

    def result(self, training: ResumableTraining) -> TrainedModel:
        """The best epoch."""
        best, tasks = training.kept["best"], list(self.model.tasks)
        heads = {task: sub_state(best, f"heads.{k}.") for k, task in enumerate(tasks)}
        for task, scale in self.scales.items():
            heads[task] = scale.fold(heads[task]) if scale else heads[task]
        record = {
            "epochs": len(training.history),
            "best_epoch": training.kept["best_epoch"],
            "valid": training.history,
            "steps": self.steps * len(training.history),
            "seconds": round(training.seconds, 2),
        }
        if len(tasks) > 1:
            by_epoch = training.kept["by_task"]
            record["valid_by_task"] = {
                task: [scores[k] for scores in by_epoch] for k, task in enumerate(tasks)
            }
        return TrainedModel(sub_state(best, "network."), heads, record)
