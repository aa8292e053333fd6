"""Supervised training on graphs with numeric features: one task with a network of its own, or
several tasks with one network and a head each."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from merging.data.task_data import Step
from merging.families.graphs import TaskData
from merging.graphs.evaluation import predict
from merging.training.loop import ResumableTraining
from merging.training.losses import LabelScale, loss
from merging.training.metrics import score
from merging.training.settings import GraphTrainingConfig
from models.data.batch import GraphBatch, mean_readout
from models.networks.pyg import GraphNetwork, GraphNetworkConfig
from models.state_dict import sub_state
from models.task import Level


class TaskModel(nn.Module):
    """A network with the head of one task; the features come encoded."""

    def __init__(self, network: GraphNetwork, level: Level, outputs: int) -> None:
        super().__init__()
        self.network = network
        self.level = level
        self.head = nn.Linear(network.config.hidden_dim, outputs)

    def forward(self, batch: GraphBatch) -> Tensor:
        """The head's outputs: (G, C), or (N, C) for a task on nodes; the mean over a graph's nodes
        is its embedding."""
        h = self.network(batch)
        out: Tensor = self.head(h if self.level == "node" else mean_readout(h, batch))
        return out


@dataclass(frozen=True)
class TrainResult:
    """What training made of one or several tasks, at the best epoch.

    Attributes:
        network: state dict of the GraphNetwork.
        heads: by task, state dict of its linear head (weight (C, d), bias (C,)); for regression it
            answers in the units of the labels.
        record: epochs run, best epoch, mean validation score by epoch, seconds.
    """

    network: dict[str, Tensor]
    heads: dict[str, dict[str, Tensor]]
    record: dict[str, Any]


def initial_network(config: GraphNetworkConfig, seed: int) -> dict[str, Tensor]:
    """State dict of a network with random weights, by the seed alone."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return GraphNetwork(config).state_dict()


def train(
    tasks: Mapping[str, TaskData],
    initial: dict[str, Tensor],
    network: GraphNetworkConfig,
    config: GraphTrainingConfig,
    seed: int,
    checkpoint: Path,
    device: torch.device | None = None,
) -> TrainResult:
    """Train one network on all tasks, each with a head, and keep the epoch with the best mean
    validation score (the earliest of equals).

    An epoch shows every training row of every task once; each batch holds one task, in random
    order. Where no task has a validation score, the last epoch is kept. The score of a task is its
    accuracy or ROC-AUC; of a regression minus the mean absolute error in standard deviations.

    Args:
        tasks: by name; one of them is the usual training of one model.
        initial: state dict of the network to start from.
        network: its shape.
        config: epochs, patience and so on.
        seed: of the heads, the order of batches and dropout; each epoch draws from its own seed, so
            a resumed run is the same run.
        checkpoint: where the state is kept after each epoch; removed by the caller once the result
            is stored.
        device: where to train; the CPU if not said.
    """
    device = device or torch.device("cpu")
    torch.manual_seed(seed)
    shared = GraphNetwork(network, config.dropout)
    shared.load_state_dict(initial)
    jobs = {task: _Job.of(data, shared, device) for task, data in tasks.items()}
    # by number: a ModuleDict refuses names with a dot
    trained = nn.ModuleList([shared, *(job.model.head for job in jobs.values())])
    optimizer = torch.optim.Adam(
        trained.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    training = ResumableTraining(trained, optimizer, checkpoint, seed, device)
    for epoch in training.epochs(config.epochs, f"{', '.join(tasks)}: epochs"):
        mean_loss = _train_epoch(list(jobs.values()), optimizer, config.batch_size)
        training.keep_best(epoch, _mean([job.validate() for job in jobs.values()]))
        training.shown = {
            "loss": f"{mean_loss:.4f}",
            "valid": f"{training.history[-1]:.4f}",
            "best": training.kept["best_epoch"],
        }
        if epoch - training.kept["best_epoch"] >= config.patience:
            break
    return _result(training, jobs)


@dataclass(frozen=True)
class _Job:
    """A task in training, with the scale of its labels."""

    data: TaskData
    model: TaskModel
    scale: LabelScale
    device: torch.device

    @classmethod
    def of(cls, data: TaskData, network: GraphNetwork, device: torch.device) -> "_Job":
        model = TaskModel(network, data.level, data.outputs).to(device)
        return cls(data, model, label_scale(data), device)

    def loss(self, step: Step) -> Tensor:
        """Mean over the labels that are known."""
        outputs = self.model(step.batch.to(self.device))
        labels = self.scale.standardised(step.labels).to(self.device)
        return loss(step.select(outputs), labels, self.data.info)

    def validate(self) -> float:
        """The score that epochs are compared by; the greater, the better."""
        self.model.eval()
        labels, outputs = predict(self._outputs, self.data, "valid")
        standardised = self.scale.standardised(labels)
        return score(outputs.numpy(), standardised.numpy(), self.data.info)

    def _outputs(self, batch: GraphBatch) -> Tensor:
        out: Tensor = self.model(batch.to(self.device)).cpu()
        return out


def label_scale(data: TaskData) -> LabelScale:
    """The scale of a task's training labels."""
    return LabelScale.of(data.info, (step.labels for step in data.steps("train", 2**20)))


def _train_epoch(jobs: list[_Job], optimizer: torch.optim.Optimizer, batch_size: int) -> float:
    """One step for every batch of every task, in random order; returns the mean loss of the
    steps."""
    steps = [
        (job, step) for job in jobs for step in job.data.steps("train", batch_size, shuffle=True)
    ]
    losses = []
    for k in torch.randperm(len(steps)).tolist():
        job, step = steps[k]
        job.model.train()
        value = job.loss(step)
        # to None, so that the other tasks' heads stay as they are, Adam's momentum included
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    return sum(losses) / len(losses)


def _mean(scores: list[float]) -> float:
    return float(torch.tensor(scores, dtype=torch.float64).nanmean())


def _result(training: ResumableTraining, jobs: Mapping[str, _Job]) -> TrainResult:
    best: dict[str, Tensor] = training.kept["best"]
    heads = {}
    for k, (task, job) in enumerate(jobs.items(), start=1):
        heads[task] = job.scale.folded(sub_state(best, f"{k}."))
    record = {
        "epochs": len(training.history),
        "best_epoch": training.kept["best_epoch"],
        "valid": training.history,
        "seconds": round(training.seconds, 2),
    }
    return TrainResult(sub_state(best, "0."), heads, record)


def fitted_model(
    network: dict[str, Tensor], config: GraphNetworkConfig, head: dict[str, Tensor], data: TaskData
) -> TaskModel:
    """A network with a task's head, in evaluation mode: what is measured of separate, merged and
    joint networks alike."""
    model = TaskModel(GraphNetwork(config), data.level, data.outputs)
    model.network.load_state_dict(network)
    model.head.load_state_dict(head)
    return model.requires_grad_(False).eval()
