"""Supervised training of a network with one head per task, for every family of models; resumable
after every epoch."""

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
from merging.training.low_rank import low_rank_deltas
from models.state_dict import sub_state

TrainedParameters = Literal["all", "heads", "adapters"]


@dataclass(frozen=True)
class TrainedModel:
    """The weights of a network and its heads at the epoch that is kept.

    Attributes:
        network: state dict of the network.
        heads: state dicts by task; the head of a regression answers in the units of the labels.
        record: number of epochs and gradient steps, the epoch with the best validation score,
            seconds, and the score by epoch (greater is better): the mean over tasks, and by task if
            there are several.
    """

    network: StateDict
    heads: dict[str, StateDict]
    record: dict[str, Any]


class MultitaskModel(nn.Module):
    """A network with one head per task.

    Attributes:
        tasks: data by task.
    """

    def __init__(
        self, family: OfflineFamily, shape: Any, tasks: Mapping[str, TaskData], dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.family, self.tasks = family, dict(tasks)
        self.network = family.network(shape, dropout)
        # A list, as a ModuleDict refuses names with a dot.
        self.heads = nn.ModuleList(family.head(shape, data) for data in tasks.values())

    def head(self, task: str) -> nn.Module:
        """Return the head of a task."""
        return self.heads[list(self.tasks).index(task)]

    def forward(self, batch: Any, task: str) -> Any:
        """Compute the outputs of a task's head for a batch (`OfflineFamily.outputs`)."""
        info, head = self.tasks[task].info, self.head(task)
        return self.family.outputs(self.network, head, batch, info, self.training)


def initial_model(
    family: OfflineFamily,
    shape: Any,
    tasks: Mapping[str, TaskData],
    initial: StateDict,
    seed: int,
    dropout: float = 0.0,
) -> MultitaskModel:
    """Build a model with the weights that training starts from.

    Args:
        family: the family of the network.
        shape: shape of the network.
        tasks: data by task.
        initial: `network.*`, and `head.*` if all heads start alike
            (`OfflineFamily.initial_state`).
        seed: seed of heads with random weights.
        dropout: dropout rate in training.
    """
    torch.manual_seed(seed)
    model = MultitaskModel(family, shape, tasks, dropout)
    model.network.load_state_dict(sub_state(initial, "network."))
    start = sub_state(initial, "head.")
    for task, data in tasks.items():
        head = model.head(task)
        if start:
            head.load_state_dict(start)
        family.prepare_head(model.network, head, data)
    return model


def train(
    model: MultitaskModel,
    settings: TrainingConfig,
    seed: int,
    checkpoint: Path,
    device: torch.device | None = None,
    parameters: TrainedParameters = "all",
) -> TrainedModel:
    """Train a model on its tasks and return the epoch with the best validation score, or the last
    (`TrainingConfig.keep`).

    The score is the mean over the tasks that have one; of equal epochs the earliest is kept, and
    the last if no epoch has a score. An epoch visits every training row of every task once; a batch
    holds rows of one task.

    Args:
        model: trained in place, on the device.
        settings: epochs, batch size and optimiser.
        seed: seed of the order of rows and of dropout; every epoch has its own seed, so that a
            resumed run equals an uninterrupted one.
        checkpoint: file for the resumable state; the caller removes it once the result is stored.
        device: device to train on; None for the CPU.
        parameters: train all weights, the heads alone, or the heads and what `add_low_rank` has
            added to the network.
    """
    device = device or torch.device("cpu")
    run = _Training(model.to(device), settings, device)
    optimizer = torch.optim.Adam(
        run.parameters(parameters),
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
    """Return the (task, step) pairs of one epoch, in an order drawn from torch's generator."""
    steps = [
        (task, step)
        for task, data in tasks.items()
        for step in data.steps("train", settings.batch_size, shuffle=True)
    ]
    if not settings.shuffles_batches:
        return steps
    return [steps[k] for k in torch.randperm(len(steps)).tolist()]


def label_scale(data: TaskData) -> LabelScale | None:
    """Return mean and deviation of a regression's training labels; None for other targets."""
    if data.info.target != "regression":
        return None
    return LabelScale.fit(data.info, (step.labels for step in data.steps("train", 2**20)))


def standardised(scale: LabelScale | None, values: Any) -> Any:
    """Return labels or outputs in standard deviations from the mean; unchanged without a scale."""
    return scale.standardise(values) if scale else values


class _Training:
    """The epochs, the validation and the result of one training."""

    def __init__(
        self, model: MultitaskModel, settings: TrainingConfig, device: torch.device
    ) -> None:
        self.model, self.settings, self.device = model, settings, device
        self.steps = 0
        self.scales = {task: label_scale(data) for task, data in model.tasks.items()}

    def parameters(self, which: TrainedParameters) -> list[nn.Parameter]:
        """Return the parameters to train, and turn off the gradients of all others."""
        self.model.requires_grad_(which == "all")
        if which == "adapters":
            for adapter in low_rank_deltas(self.model.network):
                adapter.requires_grad_(True)
        for head in self.model.heads:
            for parameter in self.model.family.tuned_parameters(head):
                parameter.requires_grad_(True)
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def epoch(self, optimizer: torch.optim.Optimizer) -> float:
        """Take one gradient step per batch of every task; return the mean loss of the steps."""
        steps, losses = epoch_steps(self.model.tasks, self.settings), 0.0
        self.model.train()
        for task, step in steps:
            loss = self._loss(task, step)
            # To None: Adam then skips the other tasks' heads, their momentum included.
            optimizer.zero_grad()
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
        """Compute the validation score of a task."""
        model, data = self.model.eval(), self.model.tasks[task]
        steps = data.steps("valid", model.family.evaluation_batch)
        outputs, labels = model.family.predict(partial(model, task=task), steps, self.device)
        return model.family.score(outputs, standardised(self.scales[task], labels), data.info)

    def result(self, training: ResumableTraining) -> TrainedModel:
        """Return the weights of the epoch that is kept, with label scales folded into the heads."""
        last = {key: value.cpu() for key, value in self.model.state_dict().items()}
        kept = training.kept["best"] if self.settings.keep == "best" else last
        tasks = list(self.model.tasks)
        heads = {task: sub_state(kept, f"heads.{k}.") for k, task in enumerate(tasks)}
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
        return TrainedModel(sub_state(kept, "network."), heads, record)
