"""D-MPNNs that somebody brought, as one model: side by side, or as the average network with
low-rank residuals; and how far its predictions are from theirs. Needs no labels."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from merging.imports.brought import Merged
from merging.imports.check import shape_difference
from merging.imports.chemprop import ChempropModel, Ensemble
from merging.imports.difference import differences
from merging.mergers.residual import low_rank_factors
from merging.targets.metrics import compute_outputs
from models.data.batch import GraphBatch
from models.data.bond_graph import BondGraph, collate_bonds
from models.errors import ConfigError
from models.experts.dmpnn import DmpnnExpert, DmpnnModel, Residual
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
    """A task with the model that somebody brought.

    Attributes:
        info: labels and target.
        ensemble: one network, or several whose mean is the answer.
    """

    info: TaskInfo
    ensemble: Ensemble

    @property
    def members(self) -> tuple[ChempropModel, ...]:
        """The networks."""
        return self.ensemble.members

    @property
    def model(self) -> ChempropModel:
        """The only network. Raises ConfigError: the task has an ensemble."""
        if len(self.members) > 1:
            got = f"{self.ensemble.path}: got an ensemble of {len(self.members)} networks"
            expected = "expected one network: name the file of one, or choose separate or one-pass"
            raise ConfigError(f"{got}, {expected}")
        return self.members[0]


Tasks = Mapping[str, ImportedTask]


@dataclass(frozen=True)
class MergedDmpnn(Merged):
    """One D-MPNN of all tasks, see `merging.imports.brought.Merged`; `network` is the shared
    message passing."""

    shape: DmpnnConfig
    experts: dict[str, DmpnnExpert]

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

    def select(self, indices: Tensor) -> GraphBatch:
        """Join the molecules at `indices` to one batch, in that order."""
        return collate_bonds([self.graphs[k] for k in indices.tolist()])


# --- separate, and by residuals ---


def separate(tasks: Tasks) -> MergedDmpnn:
    """Put the models side by side, without merging: every task keeps its own networks."""
    return assemble(tasks, 0, "none", nn.Module(), own=True)


def residual(tasks: Tasks, rank: int) -> MergedDmpnn:
    """Give every task the average network and the best approximation of rank r of what averaging
    took away: see `merging.mergers.residual`. Raises ConfigError: see `average`."""
    network = average(tasks)
    state = network.state_dict()
    # A model that is the average, such as an only one, has no difference to add.
    same = {
        name
        for name, task in tasks.items()
        if all(torch.equal(task.model.network[key], value) for key, value in state.items())
    }
    merged = assemble(tasks, rank, "residual", network, without=same)
    for task, expert in merged.experts.items():
        if task in same:
            continue
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
        if difference := shape_difference(other.members[0].shape, shape):
            raise ConfigError(f"{name}: got {difference}, that of {first}")
    return shape


def assemble(
    tasks: Tasks,
    rank: int,
    correction: Correction,
    network: nn.Module,
    own: bool = False,
    without: Collection[str] = (),
) -> MergedDmpnn:
    """Build a model with the tasks' own feed-forward networks.

    Args:
        tasks: the models.
        rank, correction: of the shared network.
        network: the shared message passing, or an empty module.
        own: whether every task brings its own message passing.
        without: tasks that correct nothing.
    """
    heads = {}
    for name, task in tasks.items():
        model = task.members[0]
        brought = message_passing_shape(model.shape) if own else None
        corrected: Correction = "none" if name in without else correction
        changes = {"members": len(task.members), "own": brought, "correction": corrected}
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

    def forward(batch: GraphBatch) -> Tensor:
        outputs = model(batch, positions)
        widths[:] = [output.shape[1] for output in outputs]
        return torch.cat(
            [answers(output, kind) for output, kind in zip(outputs, model.kinds, strict=True)], 1
        )

    found = compute_outputs(forward, pool, torch.arange(len(pool)), CPU)
    return dict(zip(model.tasks, found.split(widths, 1), strict=True))


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
