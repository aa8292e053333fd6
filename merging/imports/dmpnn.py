"""Ways to put D-MPNNs that somebody brought into one model: separately, by low-rank residuals, with
adapters, or as one network that answers all tasks in one pass. None needs a label."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from merging.config.joint_alignment import JointAlignmentConfig
from merging.imports.chemprop import ChempropModel, Ensemble
from merging.mergers.residual import low_rank_factors
from merging.targets.metrics import batches, compute_outputs
from merging.training.joint_alignment import JointStudent, Targets, align_jointly
from merging.training.loop import ResumableTraining
from models.data.bond_graph import BondBatch, BondGraph, collate_bonds
from models.errors import ConfigError
from models.experts.dmpnn import DmpnnExpert, DmpnnModel, Member, Residual, SiteAdapters
from models.networks.dmpnn import (
    Correction,
    DmpnnConfig,
    DmpnnHead,
    MessagePassing,
    MessagePassingShape,
)
from models.task import TaskInfo, answers

CPU = torch.device("cpu")


@dataclass(frozen=True)
class ImportedTask:
    """A task with the models that somebody brought.

    Attributes:
        info: labels and target.
        members: the networks of an ensemble, or one.
    """

    info: TaskInfo
    members: tuple[ChempropModel, ...]

    @property
    def model(self) -> ChempropModel:
        """The only network. Raises ConfigError: the task has an ensemble."""
        if len(self.members) > 1:
            got = (
                f"got an ensemble of {len(self.members)} networks in {self.members[0].path.parent}"
            )
            expected = "expected one network: name the file of one, or choose separate or one-pass"
            raise ConfigError(f"{got}, {expected}")
        return self.members[0]


Tasks = Mapping[str, ImportedTask]


@dataclass(frozen=True)
class MergedDmpnn:
    """One model of all tasks.

    Attributes:
        shape, rank: of the manifest.
        network: the shared message passing, or an empty module.
        experts: by task.
        record: of the training, for the manifest.
    """

    shape: DmpnnConfig
    rank: int
    network: nn.Module
    experts: dict[str, DmpnnExpert]
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> DmpnnModel:
        """The model of all tasks."""
        return DmpnnModel(self.network, self.experts)


@dataclass(frozen=True)
class BondPool:
    """Unlabelled molecules, from which batches are taken by number."""

    graphs: Sequence[BondGraph]

    def __len__(self) -> int:
        return len(self.graphs)

    def select(self, indices: Tensor) -> BondBatch:
        """Join the molecules at `indices` to one batch, in that order."""
        return collate_bonds([self.graphs[k] for k in indices.tolist()])


# --- separate, and by residuals ---


def separate(tasks: Tasks) -> MergedDmpnn:
    """Put the models side by side, without merging: every task keeps its own networks."""
    return _assemble(tasks, 0, "none", nn.Module(), own=True)


def residual(tasks: Tasks, rank: int) -> MergedDmpnn:
    """Give every task the average network and the best approximation of rank r of what averaging
    took away: see `merging.mergers.residual`. Raises ConfigError: see `average`."""
    network = average(tasks)
    merged = _assemble(tasks, rank, "residual", network)
    state = network.state_dict()
    for task, expert in merged.experts.items():
        own = tasks[task].model.network
        added = cast(Residual, expert.correction)
        tensors: dict[str, Tensor] = {}
        for name, value in state.items():
            delta, key = own[name].double() - value.double(), name.replace(".", "/")
            if f"tensors.{key}" in added.state_dict():
                tensors[f"tensors.{key}"] = delta.float()
                continue
            left, right = low_rank_factors(delta, rank)
            tensors[f"tensors.{key}/left"] = left.float()
            tensors[f"tensors.{key}/right"] = right.float()
        added.load_state_dict(tensors)
    return merged


def average(tasks: Tasks) -> MessagePassing:
    """Average the message passing of all tasks. Raises ConfigError: a task has an ensemble, or two
    tasks have other shapes."""
    shape = common_shape(tasks)
    states = [task.model.network for task in tasks.values()]
    network = MessagePassing(shape, shape.atom_dim, shape.bond_dim)
    network.load_state_dict(
        {
            name: torch.stack([state[name].double() for state in states]).mean(0).float()
            for name in network.state_dict()
        }
    )
    return network.requires_grad_(False).eval()


def common_shape(tasks: Tasks) -> DmpnnConfig:
    """Return the shape that all networks have. Raises ConfigError: two differ."""
    (first, task), *others = tasks.items()
    shape = task.members[0].shape
    for name, other in others:
        found = other.members[0].shape
        for key, value in shape.model_dump().items():
            if (got := getattr(found, key)) != value:
                raise ConfigError(f"{name}: got {key} {got}, expected that of {first}, {value}")
    return shape


def _assemble(
    tasks: Tasks, rank: int, correction: Correction, network: nn.Module, own: bool = False
) -> MergedDmpnn:
    """Build a model with the tasks' own feed-forward networks."""
    heads = {}
    for name, task in tasks.items():
        model = task.members[0]
        brought = message_passing_shape(model.shape) if own else None
        changes = {"members": len(task.members), "own": brought, "correction": correction}
        heads[name] = DmpnnHead.model_validate(model.head.model_dump() | changes)
    first = next(iter(tasks.values())).members[0].shape
    shape = DmpnnConfig.model_validate(first.model_dump() | {"heads": heads})
    experts = {
        name: DmpnnExpert(shape, heads[name], rank, task.info) for name, task in tasks.items()
    }
    for name, expert in experts.items():
        for member, model in zip(expert.networks, tasks[name].members, strict=True):
            state = {f"network.{k}": v for k, v in model.network.items()} if own else {}
            # BatchNorm's counter of batches is of no use, and no file has to have it.
            counters = {k: v for k, v in member.state_dict().items() if k.endswith("_tracked")}
            member.load_state_dict(state | dict(model.head_state) | counters)
    return MergedDmpnn(shape, rank, network, experts)


def message_passing_shape(shape: DmpnnConfig) -> MessagePassingShape:
    """Return the shape of the message passing alone."""
    names = MessagePassingShape.model_fields
    return MessagePassingShape.model_validate(shape.model_dump(include=set(names)))


# --- the label-free difference ---


@torch.no_grad()
def predictions(model: DmpnnModel, pool: BondPool) -> dict[str, Tensor]:
    """Compute the predictions of all tasks for a pool, (P, C) by task on the CPU."""
    positions = range(len(model.tasks))
    widths: list[int] = []

    def forward(batch: BondBatch) -> Tensor:
        outputs = model(batch, positions)
        widths[:] = [output.shape[1] for output in outputs]
        return torch.cat(
            [answers(output, kind) for output, kind in zip(outputs, model.kinds, strict=True)], 1
        )

    found = compute_outputs(forward, pool, torch.arange(len(pool)), CPU)
    return dict(zip(model.tasks, found.split(widths, 1), strict=True))


def differences(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, float]:
    """Compute by task how far predictions are from those of the user's own models: the root mean
    square of the difference over molecules, in standard deviations of the own model's predictions,
    as mean over labels. It needs no labels of molecules.

    Args:
        found, expected: predictions (P, C) by task (`predictions`).
    """
    result = {}
    for task, own in expected.items():
        squared = (found[task].double() - own.double()).square().mean(0)
        variance = own.double().var(0, correction=0)
        # A label that the own model gives one value for: its difference counts in its own unit.
        scaled = (squared / torch.where(variance > 0, variance, 1.0)).sqrt()
        result[task] = float(scaled.mean())
    return result


def smallest_rank(
    tasks: Tasks, pool: BondPool, most: float, expected: Mapping[str, Tensor]
) -> tuple[MergedDmpnn, dict[str, float]]:
    """Find by bisection the smallest rank of `residual` whose predictions differ for no task by
    more than `most` standard deviations.

    Returns:
        The model, and `differences` by task.

    Raises:
        ConfigError: even at the highest rank they differ by more; see also `average`.
    """
    # Beyond this rank no matrix is approximated: the models are kept whole.
    highest = min(common_shape(tasks).hidden_dim, *(average(tasks).W_i.weight.shape))
    tried: dict[int, tuple[MergedDmpnn, dict[str, float]]] = {}

    def fits(rank: int) -> bool:
        merged = residual(tasks, rank)
        found = differences(predictions(merged.model, pool), expected)
        tried[rank] = merged, found
        return max(found.values()) <= most

    if not fits(highest):
        task, got = max(tried[highest][1].items(), key=lambda item: item[1])
        raise ConfigError(
            f"--max-difference: got {most}, expected at least {got:.2g}, the difference of {task}"
            " at the highest rank"
        )
    low, high = 0, highest
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return tried[high]


# --- adapters ---


@dataclass(frozen=True)
class AdapterSettings:
    """Settings of adapter training.

    Attributes:
        epochs, batch_size, learning_rate: of Adam; the rate falls to 0 along half a cosine.
        most: maximum number of molecules per epoch.
    """

    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 3e-3
    most: int | None = None


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
    merged = _assemble(tasks, rank, "adapters", network)
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
        order = torch.randperm(len(pool))[: settings.most]
        losses = []
        steps = math.ceil(len(order) / settings.batch_size)
        for step, (_, batch) in enumerate(batches(pool, order, settings.batch_size)):
            done = (epoch - 1 + step / steps) / settings.epochs
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * (1 + math.cos(math.pi * done)) / 2
            loss = _alignment_loss(trained, network, own, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        training.history.append(sum(losses) / len(losses))
        training.shown = {"loss": f"{training.history[-1]:.4f}"}
    return training.history


def _alignment_loss(
    trained: SiteAdapters, network: MessagePassing, own: MessagePassing, batch: BondBatch
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

    def outputs(self, batch: BondBatch) -> dict[str, Tensor]:
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
    def outputs(self, batch: BondBatch) -> Tensor:
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
    merged = _assemble(firsts, settings.rank, "graph_adapter", network)
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
