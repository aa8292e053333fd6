"""Training, without labels, of what joins D-MPNNs that somebody brought: adapters by task, or one
network that answers all tasks in one pass."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from merging.config.joint_alignment import JointAlignmentConfig
from merging.imports.chemprop import ChempropModel
from merging.imports.dmpnn import (
    CPU,
    BondPool,
    ImportedTask,
    MergedDmpnn,
    Tasks,
    assemble,
    average,
    separate,
)
from merging.targets.metrics import batches, compute_outputs
from merging.training.joint_alignment import JointStudent, Targets, align_jointly
from merging.training.loop import ResumableTraining, set_cosine_rate
from models.data.batch import GraphBatch
from models.experts.dmpnn import DmpnnModel, Member, SiteAdapters
from models.networks.dmpnn import MessagePassing, MessagePassingShape
from models.task import TaskInfo

# --- adapters ---


JOINT = JointAlignmentConfig(batch_size=64)
"""Settings of `one_pass`. Four times as many steps as with batches of 256, which costs the same,
halve the loss on molecules that were not trained on."""


@dataclass(frozen=True)
class AdapterSettings:
    """Settings of adapter training.

    Attributes:
        epochs, batch_size, learning_rate: of Adam; the rate falls to 0 along half a cosine.
    """

    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 3e-3


def adapters(
    tasks: Tasks, pool: BondPool, rank: int, settings: AdapterSettings, seed: int, folder: Path
) -> MergedDmpnn:
    """Correct the average network by adapters of every task (G-Merging, eq. 2 to 7), trained
    without labels to give the states of the task's own network: half of 1 - cosine at every site,
    and the L1 distance of the molecule's vector in units of its mean size.

    Args:
        tasks: with one network each.
        pool: the molecules.
        rank: of the adapters.
        settings: of the training.
        seed: of the initialisation and the order of molecules.
        folder: for the states after every epoch, from which a stopped training resumes.

    Raises:
        ConfigError: see `average`.
        TrainingError: a weight is no longer finite.
    """
    network = average(tasks)
    merged = assemble(tasks, rank, "adapters", network)
    record: dict[str, Any] = {}
    for name, expert in merged.experts.items():
        torch.manual_seed(seed)
        own = _own_network(tasks[name].model)
        trained = SiteAdapters(network.shape.hidden_dim, rank, network.num_sites)
        checkpoint = folder / f"{name}-adapters.resume.pt"
        record[name] = _align(trained, network, own, pool, settings, seed, checkpoint, name)
        cast(SiteAdapters, expert.correction).load_state_dict(trained.state_dict())
    return MergedDmpnn(merged.shape, rank, network, merged.experts, {"loss": record})


def _own_network(model: ChempropModel) -> MessagePassing:
    network = MessagePassing(model.shape, model.shape.atom_dim, model.shape.bond_dim)
    network.load_state_dict(dict(model.network))
    return network.requires_grad_(False).eval()


def _align(
    trained: SiteAdapters,
    network: MessagePassing,
    own: MessagePassing,
    pool: BondPool,
    settings: AdapterSettings,
    seed: int,
    checkpoint: Path,
    name: str,
) -> list[float]:
    optimizer = torch.optim.Adam(trained.parameters(), lr=settings.learning_rate)
    training = ResumableTraining(trained, optimizer, checkpoint, seed, CPU)
    for epoch in training.epochs(settings.epochs, f"{name}: adapter epochs"):
        order = torch.randperm(len(pool))
        losses = []
        steps = math.ceil(len(order) / settings.batch_size)
        for step, (_, batch) in enumerate(batches(pool, order, settings.batch_size)):
            done = (epoch - 1 + step / steps) / settings.epochs
            set_cosine_rate(optimizer, settings.learning_rate, done)
            loss = _alignment_loss(trained, network, own, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        training.history.append(sum(losses) / len(losses))
        training.shown = {"loss": f"{training.history[-1]:.4f}"}
    return training.history


def _alignment_loss(
    trained: SiteAdapters, network: MessagePassing, own: MessagePassing, batch: GraphBatch
) -> Tensor:
    expected: list[Tensor] = []

    def record(_: int, h: Tensor) -> Tensor:
        expected.append(h)
        return h

    with torch.no_grad():
        own(batch, record)
    found: list[Tensor] = []

    def correct(site: int, h: Tensor) -> Tensor:
        found.append(trained.correct(site, h))
        return found[-1]

    network(batch, correct)
    loss = (found[-1] - expected[-1]).abs().mean() / expected[-1].abs().mean().clamp(min=1e-12)
    for h, reference in zip(found[:-1], expected[:-1], strict=True):
        if len(h):  # molecules of single atoms have no bonds
            loss = loss + (1 - F.cosine_similarity(h, reference, dim=-1)).mean() / 2
    return loss


# --- one pass ---


class SharedDmpnn(JointStudent):
    """A D-MPNN that answers all tasks in one pass: one message passing, and by task an adapter of
    the molecule's vector and feed-forward layers.

    Attributes:
        network: the message passing.
        adapters, members: one per task, in the order of `tasks`.
    """

    def __init__(self, network: MessagePassing, members: Mapping[str, Member], rank: int) -> None:
        super().__init__()
        self.tasks, self.network = tuple(members), network
        width = network.shape.hidden_dim
        self.adapters = nn.ModuleList(SiteAdapters(width, rank, 1) for _ in members)
        self.members = nn.ModuleList(members.values())

    @property
    def heads(self) -> nn.ModuleList:  # type: ignore[override]
        """The last layers of the tasks."""
        return nn.ModuleList(cast(Member, member).layers[-1] for member in self.members)

    @property
    def shape(self) -> MessagePassingShape:
        """Shape of the message passing."""
        return self.network.shape

    def outputs(self, batch: GraphBatch) -> dict[str, Tensor]:
        """See `JointStudent.outputs`."""
        vectors = self.network(batch)
        return {
            task: member(cast(SiteAdapters, adapter).correct(0, vectors))
            for task, adapter, member in zip(self.tasks, self.adapters, self.members, strict=True)
        }


@dataclass(frozen=True)
class OwnModel:
    """A task's own model as a teacher (`merging.training.teachers.Teacher`)."""

    info: TaskInfo
    model: DmpnnModel
    position: int

    @property
    def labels(self) -> tuple[str, ...]:
        """See `Teacher.labels`."""
        return self.info.labels

    @torch.no_grad()
    def outputs(self, batch: GraphBatch) -> Tensor:
        """See `Teacher.outputs`."""
        found: list[Tensor] = self.model(batch, [self.position])
        return found[0]


def one_pass(
    tasks: Tasks, pool: BondPool, settings: JointAlignmentConfig, seed: int, folder: Path
) -> MergedDmpnn:
    """Train one network, without labels, to answer like the models of all tasks
    (`merging.training.joint_alignment`). It starts from the average of the tasks' first networks;
    feed-forward layers start as those of the first network of the task.

    Args:
        tasks: ensembles are teachers too, by the mean of their predictions.
        pool: the molecules, in random order; the first ones are not trained on.
        settings: of the training.
        seed: of the initialisation and the order of molecules.
        folder: for the state after every epoch, from which a stopped training resumes.

    Raises:
        ConfigError: see `common_shape`.
        TrainingError: a weight is no longer finite.
    """
    firsts = {
        name: ImportedTask(task.info, replace(task.ensemble, members=task.members[:1]))
        for name, task in tasks.items()
    }
    network = average(firsts)
    merged = assemble(firsts, settings.rank, "graph_adapter", network)
    torch.manual_seed(seed)
    members = {name: expert.networks[0] for name, expert in merged.experts.items()}
    student = SharedDmpnn(network, members, settings.rank).requires_grad_(True)
    own = separate(tasks).model
    teachers = {name: OwnModel(task.info, own, k) for k, (name, task) in enumerate(tasks.items())}
    rows = torch.arange(len(pool))
    targets = {
        name: Targets.of(
            compute_outputs(teacher.outputs, pool, rows, CPU), teacher.info, settings.least_logit
        )
        for name, teacher in teachers.items()
    }
    place = seed, folder / "one-pass.resume.pt", CPU
    aligned = align_jointly(student, pool, targets, teachers, settings, *place)
    for expert, adapter in zip(merged.experts.values(), student.adapters, strict=True):
        cast(SiteAdapters, expert.correction).load_state_dict(adapter.state_dict())
        expert.requires_grad_(False).eval()
    network.requires_grad_(False).eval()
    return MergedDmpnn(merged.shape, settings.rank, network, merged.experts, aligned.record)
