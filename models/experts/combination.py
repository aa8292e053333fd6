"""Combination of the two experts of a task: `own`, the network, and `forest`, trees on
fingerprints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from models.data.fingerprint import Block
from models.errors import InvalidInputError, did_you_mean
from models.experts.forest import Forest
from models.task import OutputKind, Target, answers

ExpertName = Literal["own", "forest"]
EXPERTS: tuple[ExpertName, ...] = get_args(ExpertName)
"""The experts: the network with the task's own adapters and head, and the forest."""
ExpertChoice = Literal["own", "forest", "both"]
"""Which experts answer: one of them, or the mean of both."""

FOREST_TARGETS: tuple[Target, ...] = ("multilabel", "regression")
"""Targets with forests: `multiclass` would need trees with a leaf per class."""


def check_experts(names: Sequence[str]) -> None:
    """Raise InvalidInputError if the name of an expert is unknown or given twice, or there is
    none."""
    for name in names:
        if name not in EXPERTS:
            known = f"{' or '.join(EXPERTS)}{did_you_mean(name[:64], EXPERTS)}"
            raise InvalidInputError(f"got unknown expert {name[:64]!a}, expected {known}")
    if len(set(names)) != len(names) or not names:
        expected = f"expected some of {', '.join(EXPERTS)}, each once"
        raise InvalidInputError(f"got experts {list(names)}, {expected}")


def expert_choice(names: Sequence[str]) -> ExpertChoice:
    """Return the choice that a list of experts stands for. Raises InvalidInputError: see
    `check_experts`."""
    check_experts(names)
    return "both" if len(names) > 1 else "own" if "own" in names else "forest"


class ForestInfo(BaseModel):
    """Description of the forest of a task; travels in the artifact's manifest.

    Attributes:
        default: the experts that answer where a request names none, chosen by validation data.
        inputs: the blocks of fingerprint columns that the trees were trained on.
        library: the library that they were trained with, and its version.
        weight: of the forest in the mean of both; the network has the rest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    default: ExpertChoice
    inputs: Annotated[tuple[Block, ...], Field(min_length=1)]
    library: str
    weight: Annotated[float, Field(gt=0, lt=1)] = 0.5

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.inputs)) != len(self.inputs):
            raise ValueError(f"inputs: got {list(self.inputs)}, expected each once")
        return self

    def weights(self, choice: ExpertChoice) -> dict[ExpertName, float]:
        """Return the weights of the experts in an answer."""
        if choice == "both":
            return {"own": 1 - self.weight, "forest": self.weight}
        return {choice: 1.0}


@dataclass(frozen=True)
class Opinions:
    """What the experts of a task answer, and their combination, in the shape (G, L):
    probabilities, or values of a regression.

    Attributes:
        values: the answer.
        experts: the answer of every expert that takes part in it.
    """

    values: NDArray[np.float32]
    experts: Mapping[ExpertName, NDArray[np.float32]]


def mean_outputs(own: Tensor, trees: Tensor, weight: float | Tensor) -> Tensor:
    """Return the weighted mean of the outputs of network and trees, (G, L), with one weight of the
    trees or one per label. Outputs are logits, or values in the units of the labels: their mean is
    that of standardised values."""
    return (1 - weight) * own + weight * trees


@dataclass(frozen=True)
class ForestMember:
    """The forest of a task in a pass.

    Attributes:
        forest, info: of the task.
        choice: `forest` or `both`.
        target: what the outputs are, `TaskInfo.output_kind`.
    """

    forest: Forest
    info: ForestInfo
    choice: ExpertChoice
    target: OutputKind


def combine(
    own: Mapping[str, Tensor], rows: NDArray[np.float32], members: Mapping[str, ForestMember]
) -> dict[str, Opinions]:
    """Answer tasks by their forests, alone or together with the network.

    Tasks with outputs of one kind are combined side by side: a task by itself would take longer
    than its trees do.

    Args:
        own: by task, (G, L), outputs of the network, on the CPU.
        rows: (G, F), fingerprints.
        members: by task.
    """
    found: dict[str, Opinions] = {}
    for target in dict.fromkeys(member.target for member in members.values()):
        same = {task: member for task, member in members.items() if member.target == target}
        found |= _combine_alike({task: own[task] for task in same}, rows, same, target)
    return {task: found[task] for task in members}


def _combine_alike(
    own: Mapping[str, Tensor],
    rows: NDArray[np.float32],
    members: Mapping[str, ForestMember],
    target: OutputKind,
) -> dict[str, Opinions]:
    """Do as `combine` for tasks whose outputs are of one kind."""
    forests = [member.forest for member in members.values()]
    widths = [forest.num_labels for forest in forests]
    trees = torch.from_numpy(np.concatenate([forest.outputs(rows) for forest in forests], 1))
    network = torch.cat(list(own.values()), 1).float()
    both = np.array([member.choice == "both" for member in members.values()])
    weights = np.where(both, [member.info.weight for member in members.values()], 1)
    weight = torch.from_numpy(np.repeat(weights, widths)).float()
    alone = np.concatenate([forest.scale for forest in forests])
    together = np.concatenate([forest.both_scale for forest in forests])
    scale = torch.from_numpy(np.where(np.repeat(both, widths), together, alone)).float()
    of_trees = answers(torch.from_numpy(alone).float() * trees, target).numpy()
    of_network = answers(network, target).numpy()
    values = answers(scale * mean_outputs(network, trees, weight), target).numpy()
    found, begin = {}, 0
    for (task, member), width in zip(members.items(), widths, strict=True):
        columns = slice(begin, begin + width)
        said: dict[ExpertName, NDArray[np.float32]] = {"forest": of_trees[:, columns]}
        if member.choice == "both":
            said = {"own": of_network[:, columns], **said}
        found[task] = Opinions(values[:, columns], said)
        begin += width
    return found
