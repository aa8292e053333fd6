"""Joint alignment: one network learns, without labels, to answer like the teachers of all tasks.

Every molecule of a pool is asked of every teacher, whatever task it comes from. All weights of the
backbone are trained; a task adds a graph adapter and a head, so that one pass answers all tasks.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from merging.config.joint_alignment import JointAlignmentConfig, JointLossConfig
from merging.config.training import AlignmentConfig
from merging.targets.losses import LabelScale
from merging.targets.metrics import GraphStore, batches, compute_outputs
from merging.targets.probe import fit_probe
from merging.training.alignment import alignment_loss
from merging.training.loop import ResumableTraining, set_cosine_rate
from merging.training.teachers import NetworkTeacher, Teacher
from models.data.batch import GraphBatch
from models.data.molecule import PackedGraphs
from models.errors import ConfigError
from models.experts.adapter import Adapter, LayerOutputs, trace
from models.networks.base import LayeredNetwork, LayeredShape
from models.task import TaskInfo
from models.transport.problem import Support

WATCHED_SHARE = 10
"""At most one in so many molecules of the pool is watched and not trained on."""
FITTED = 8000
"""At most so many molecules of the pool fit the heads that training starts from."""
StudentT = TypeVar("StudentT", bound="JointStudent")


@dataclass(frozen=True)
class SharedOutputs:
    """The outputs of one pass of a shared stream.

    Attributes:
        convolutions: L tensors (N, d), outputs of the layers before their BatchNorm.
        readout: (G, d), which the graph adapters read.
        embeddings: by task, (G, d): the readout after the task's graph adapter.
        outputs: by task, (G, C): logits, or values of a regression.
    """

    convolutions: tuple[Tensor, ...]
    readout: Tensor
    embeddings: dict[str, Tensor]
    outputs: dict[str, Tensor]


class JointStudent(nn.Module):
    """Base of networks that answer several tasks in one pass.

    Attributes:
        tasks: names of the tasks.
        heads: one linear layer per task, in the order of `tasks`, whose outputs are the task's.
    """

    tasks: tuple[str, ...]
    heads: nn.ModuleList

    @property
    def shape(self) -> Any:
        """Shape of the network that all tasks share."""
        raise NotImplementedError

    def outputs(self, batch: Any) -> dict[str, Tensor]:
        """Compute the outputs of all tasks, (G, C) by task."""
        raise NotImplementedError

    def own_loss(self, step: int) -> Tensor | float:
        """Compute a term that is added to the loss of a training step, after its forward pass; by
        default there is none. Steps are counted from 1."""
        return 0.0

    def after_step(self, step: int) -> None:
        """Do what follows a step of the optimiser; by default nothing."""


class SharedStream(JointStudent):
    """A network that answers all tasks in one pass: a backbone with its own BatchNorm statistics,
    and by task a graph adapter and a head.

    With g the mean of a graph's node embeddings, task k reads e_k = g - relu(g D_k) U_k.

    Attributes:
        backbone: the network.
        adapters: one per task, in the order of `tasks` (a ModuleDict refuses names with a dot).
    """

    def __init__(self, backbone: LayeredNetwork, heads: Mapping[str, nn.Linear], rank: int) -> None:
        super().__init__()
        self.tasks = tuple(heads)
        self.backbone = backbone
        self.adapters = nn.ModuleList(Adapter(backbone.config.hidden_dim, rank) for _ in heads)
        self.heads = nn.ModuleList(heads.values())

    @property
    def shape(self) -> LayeredShape:
        """Shape of the backbone."""
        return self.backbone.config

    def outputs(self, batch: GraphBatch) -> dict[str, Tensor]:
        """See `JointStudent.outputs`."""
        found: SharedOutputs = self(batch)
        return found.outputs

    def forward(self, batch: GraphBatch) -> SharedOutputs:
        """Answer all tasks for a batch of G graphs."""
        traced = trace(self.backbone, batch)
        readout = traced.graph_embedding
        embeddings = {
            task: readout - adapter(readout)
            for task, adapter in zip(self.tasks, self.adapters, strict=True)
        }
        outputs = {
            task: head(embeddings[task]) for task, head in zip(self.tasks, self.heads, strict=True)
        }
        return SharedOutputs(traced.convolutions, readout, embeddings, outputs)

    def layers_for(self, outputs: SharedOutputs, task: str) -> LayerOutputs:
        """Return the outputs of a pass as a task's own network would have them."""
        return LayerOutputs(outputs.convolutions, outputs.embeddings[task])

    def tensors(self) -> dict[str, Tensor]:
        """Return all weights and statistics: `backbone/<key>`, and by task
        `tasks/<task>/graph.down`, `graph.up`, `head.weight` and `head.bias`."""
        tensors = {f"backbone/{key}": value for key, value in self.backbone.state_dict().items()}
        for task, adapter, head in zip(self.tasks, self.adapters, self.heads, strict=True):
            own = {f"graph.{key}": value for key, value in adapter.state_dict().items()}
            own |= {f"head.{key}": value for key, value in head.state_dict().items()}
            tensors |= {f"tasks/{task}/{key}": value for key, value in own.items()}
        return tensors


def shared_stream(
    backbone: LayeredNetwork, tasks: Mapping[str, Mapping[str, Tensor]]
) -> SharedStream:
    """Build a trained shared stream, in evaluation mode.

    Args:
        backbone: with its weights and statistics.
        tasks: by task the tensors `graph.down`, `graph.up`, `head.weight` and `head.bias`.
    """
    heads = {task: linear(own["head.weight"], own["head.bias"]) for task, own in tasks.items()}
    ranks = {own["graph.up"].shape[0] for own in tasks.values()}
    stream = SharedStream(backbone, heads, ranks.pop())
    for adapter, own in zip(stream.adapters, tasks.values(), strict=True):
        adapter.load_state_dict({key: own[f"graph.{key}"] for key in ("down", "up")})
    return stream.requires_grad_(False).eval()


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Build a linear layer with a copy of the given weights."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


@dataclass(frozen=True, eq=False)
class Targets:
    """The outputs of a task's teacher on the pool, which the student is to give.

    The student of a regression answers in standard deviations of these outputs while it is
    trained, so that units and offsets do not affect its optimiser.

    Attributes:
        labels: names of the C labels or classes.
        outputs: (P, C), standardised for a regression.
        scale: mean and deviation of a regression's outputs; 0 and 1 for other targets.
    """

    labels: tuple[str, ...]
    outputs: Tensor
    scale: LabelScale

    @classmethod
    def of(cls, outputs: Tensor, info: TaskInfo, least_logit: float | None = None) -> "Targets":
        """Standardise a teacher's outputs (P, C); logits below `least_logit` count as it."""
        if info.target != "regression" and least_logit is not None:
            outputs = outputs.clamp(min=least_logit)
        scale = LabelScale.fit(info, [outputs])
        return cls(info.labels, scale.standardise(outputs), scale)

    @cached_property
    def variances(self) -> Tensor:
        """(C,), the variance of every label's outputs; 1 for a label whose outputs are all equal,
        which then counts by its squared error."""
        variances = self.outputs.double().var(0, correction=0)
        return torch.where(variances > 0, variances, 1.0).float()

    def error(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """Compute by label the mean squared difference to the outputs for the molecules `rows`
        (G,), in units of the label's variance: (G, C) -> (C,)."""
        expected = self.outputs[rows].to(outputs.device)
        return (outputs - expected).square().mean(0) / self.variances.to(outputs.device)


@dataclass(frozen=True)
class JointAlignmentResult(Generic[StudentT]):
    """A trained student, in evaluation mode on the CPU, and a record of the training:
    epochs, loss by epoch; on watched molecules the loss on outputs by epoch and task, and by task
    and label the share of the teacher's variance that is explained; seconds."""

    stream: StudentT
    record: dict[str, Any]


def start_heads(
    network: LayeredNetwork,
    graphs: PackedGraphs,
    teachers: Mapping[str, Teacher],
    targets: Mapping[str, Targets],
    device: torch.device,
) -> dict[str, nn.Linear]:
    """Build the heads that training starts from, by task: a copy of the teacher's if it is one
    network of the student's shape, else a linear fit of the teacher's outputs.

    Args:
        network: the start of the student's backbone, on the device.
        graphs: the pool in random order; the fit is on `FITTED` of those that are trained on.
        teachers, targets: by task.
        device: of the network.
    """
    heads: dict[str, nn.Linear] = {}
    rows = torch.arange(len(graphs)).flip(0)[:FITTED]
    embeddings: Tensor | None = None
    for task, teacher in teachers.items():
        if isinstance(teacher, NetworkTeacher) and teacher.shape == network.config:
            fitted = {key: value.cpu() for key, value in teacher.head.state_dict().items()}
        else:
            if embeddings is None:
                embeddings = _readouts(network, graphs, rows, device)
            own = targets[task]
            fitted = own.scale.fold(fit_probe(embeddings, own.outputs[rows], "regression", None))
        heads[task] = linear(fitted["weight"], fitted["bias"])
    return heads


def _readouts(
    network: LayeredNetwork, graphs: PackedGraphs, rows: Tensor, device: torch.device
) -> Tensor:
    """Compute the embeddings of graphs, (len(rows), d)."""

    def forward(batch: GraphBatch) -> Tensor:
        return trace(network, batch).graph_embedding

    network.eval()
    return compute_outputs(forward, graphs, rows, device)


def align_jointly(
    stream: StudentT,
    graphs: GraphStore[Any],
    targets: Mapping[str, Targets],
    teachers: Mapping[str, Teacher],
    settings: JointAlignmentConfig,
    seed: int,
    checkpoint: Path,
    device: torch.device,
) -> JointAlignmentResult[StudentT]:
    """Train a network to answer like the teachers of its tasks.

    The loss is the mean over tasks, weighted by `task_weights`, of `output_loss`. For its terms on
    embeddings and layers, one task's teacher is drawn per batch with a probability proportional to
    its weight, so that their mean over batches is the mean over tasks too.

    Args:
        stream: the student, trained in place; its regression heads answer in the units of the
            labels before and after, see `Targets`.
        graphs: the P molecules of the pool in random order. The first ones are watched.
        targets: the teachers' outputs on the pool, by task.
        teachers: by task, on the device; only read for terms on embeddings and layers.
        settings: loss and optimiser.
        seed: of the order of molecules; a resumed run equals an uninterrupted one.
        checkpoint: file of the state after every epoch.
        device: where to train.

    Raises:
        ConfigError: a term needs activations that a teacher does not have, or no task has a weight.
        TrainingError: a parameter is no longer finite.
    """
    aligned = _Training(stream.to(device), graphs, targets, teachers, settings, device)
    optimizer = torch.optim.Adam(stream.parameters(), lr=settings.learning_rate, fused=True)
    _scale_heads(stream, targets, LabelScale.unfold)
    training = ResumableTraining(stream, optimizer, checkpoint, seed, device)
    for epoch in training.epochs(settings.epochs, "one pass: epochs"):
        start = time.process_time()
        training.history.append(aligned.epoch(optimizer, epoch))
        watched = aligned.watch()
        training.kept["watched"] = [*training.kept.get("watched", []), watched]
        spent = training.kept.get("cpu_seconds", 0.0) + time.process_time() - start
        training.kept["cpu_seconds"] = spent
        mean = sum(watched.values()) / len(watched)
        training.shown = {"loss": f"{training.history[-1]:.4f}", "watched": f"{mean:.4f}"}
    record = {
        "epochs": settings.epochs,
        "loss": training.history,
        "watched": {
            task: [losses[task] for losses in training.kept["watched"]] for task in stream.tasks
        },
        "explained": aligned.explained(),
        "trained_molecules": len(aligned.trained),
        "watched_molecules": len(aligned.watched),
        "seconds": round(training.seconds, 1),
        "cpu_seconds": round(training.kept["cpu_seconds"], 1),
    }
    _scale_heads(stream, targets, LabelScale.fold)
    return JointAlignmentResult(stream.cpu().requires_grad_(False).eval(), record)


def output_loss(
    outputs: Mapping[str, Tensor],
    targets: Mapping[str, Targets],
    rows: Tensor,
    weights: Mapping[str, float],
) -> Tensor:
    """Compute the loss on outputs: the squared difference in units of the label's variance, as mean
    over molecules and the labels of a task, then as weighted mean over tasks.

    Args:
        outputs: of the student, (G, C) by task.
        targets: of the pool, by task.
        rows: (G,), the molecules of the pool.
        weights: of the tasks.
    """
    total = sum(weights[task] for task in outputs)
    losses = (weights[task] * targets[task].error(outputs[task], rows).mean() for task in outputs)
    return cast(Tensor, sum(losses)) / total


def check_activations(teachers: Mapping[str, Teacher], losses: JointLossConfig, shape: Any) -> None:
    """Check that teachers have the activations that a loss compares.

    Args:
        teachers: by task.
        losses: the weights of the terms.
        shape: shape of the student's backbone.

    Raises:
        ConfigError: embeddings or layers are compared, and a teacher is not a network of the
            student's width, or for layers of its number of layers.
    """
    wanted = [name for name in ("embeddings", "layers") if getattr(losses, name)]
    if not wanted:
        return
    term = f"one_pass.losses.{wanted[-1]}"
    for task, teacher in teachers.items():
        if not isinstance(teacher, NetworkTeacher):
            raise ConfigError(
                f"{term}: got a teacher of {task} that only gives outputs (an ensemble or an"
                " imported model), expected a network with layers; leave this term out"
            )
        sizes = [(own.num_layers, own.hidden_dim) for own in (teacher.shape, shape)]
        # Embeddings need the same width only.
        compared = sizes if losses.layers else [size[1:] for size in sizes]
        if compared[0] != compared[1]:
            raise ConfigError(
                f"{term}: got a teacher of {task} with (layers, width) {sizes[0]}, expected the"
                f" student's, {sizes[1]}"
            )


class _Training:
    """The epochs of a joint alignment."""

    def __init__(
        self,
        stream: JointStudent,
        graphs: GraphStore[Any],
        targets: Mapping[str, Targets],
        teachers: Mapping[str, Teacher],
        settings: JointAlignmentConfig,
        device: torch.device,
    ) -> None:
        self.stream, self.graphs, self.targets = stream, graphs, targets
        self.settings, self.device = settings, device
        self.weights = {task: settings.task_weights.get(task, 1.0) for task in stream.tasks}
        if not any(self.weights.values()):
            raise ConfigError("one_pass.task_weights: got 0 for every task, expected one above 0")
        losses = settings.losses
        check_activations(teachers, losses, stream.shape)
        self.teachers = cast(Mapping[str, NetworkTeacher], teachers)
        # The loss of adapter training has the same two terms.
        self.activations = AlignmentConfig(
            alpha=losses.embeddings, twd_weight=losses.layers, solver=losses.solver
        )
        rows = torch.arange(len(graphs))
        count = min(settings.pool.watched, len(graphs) // WATCHED_SHARE)
        self.watched, self.trained = rows[:count], rows[count:]

    def epoch(self, optimizer: torch.optim.Optimizer, epoch: int) -> float:
        """Take a step per batch of the pool; return the mean loss. A last, incomplete batch is left
        out, since its BatchNorm statistics are noisy; every epoch leaves out others."""
        settings, size = self.settings, self.settings.batch_size
        order = self.trained[torch.randperm(len(self.trained))]
        order = order[: max(size, len(order) - len(order) % size)]
        steps, total = math.ceil(len(order) / size), 0.0
        self.stream.train()
        for step, (rows, batch) in enumerate(batches(self.graphs, order, size)):
            done = (epoch - 1 + step / steps) / settings.epochs
            set_cosine_rate(optimizer, settings.learning_rate, done)
            number = (epoch - 1) * steps + step + 1
            loss = self._loss(rows, batch.to(self.device)) + self.stream.own_loss(number)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            self.stream.after_step(number)
            total += float(loss.detach())
        return total / steps

    def _loss(self, rows: Tensor, batch: Any) -> Tensor:
        losses = self.settings.losses
        if not (losses.embeddings or losses.layers):
            outputs = output_loss(self.stream.outputs(batch), self.targets, rows, self.weights)
            return losses.logits * outputs
        stream = cast(SharedStream, self.stream)  # `check_activations`: its teachers are networks.
        found: SharedOutputs = stream(batch)
        loss = torch.zeros((), device=self.device)
        if losses.logits:
            loss = losses.logits * output_loss(found.outputs, self.targets, rows, self.weights)
        chosen = torch.multinomial(torch.tensor(list(self.weights.values())), 1)
        task = stream.tasks[int(chosen)]
        with torch.no_grad():
            expected = self.teachers[task].trace(batch)
        support = Support.from_graph(batch.edge_index, batch.batch, batch.num_graphs, 1)
        own = stream.layers_for(found, task)
        return loss + alignment_loss(own, expected, support, self.activations)

    def errors(self) -> dict[str, Tensor]:
        """Compute the errors by label (`Targets.error`) on the watched molecules, by task."""
        self.stream.eval()
        tasks = self.stream.tasks

        def outputs(batch: Any) -> Tensor:
            found = self.stream.outputs(batch)
            return torch.cat([found[task] for task in tasks], dim=1)

        rows = self.watched if len(self.watched) else self.trained
        widths = [self.targets[task].outputs.shape[1] for task in tasks]
        found = compute_outputs(outputs, self.graphs, rows, self.device).split(widths, dim=1)
        return {
            task: self.targets[task].error(own, rows)
            for task, own in zip(tasks, found, strict=True)
        }

    def watch(self) -> dict[str, float]:
        """Compute the loss on outputs of the watched molecules, by task."""
        return {task: round(float(error.mean()), 5) for task, error in self.errors().items()}

    def explained(self) -> dict[str, dict[str, float]]:
        """Compute by task and label the share of the teacher's variance that is explained."""
        shares = {task: (1 - error).tolist() for task, error in self.errors().items()}
        return {
            task: {
                label: round(share, 4)
                for label, share in zip(self.targets[task].labels, shares[task], strict=True)
            }
            for task in shares
        }


def _scale_heads(
    stream: JointStudent,
    targets: Mapping[str, Targets],
    scaled: Callable[[LabelScale, Mapping[str, Tensor]], dict[str, Tensor]],
) -> None:
    """Replace the heads by `scaled` of their tasks' scales: `LabelScale.fold` or `unfold`."""
    for task, head in zip(stream.tasks, stream.heads, strict=True):
        head.load_state_dict(scaled(targets[task].scale, head.state_dict()))
