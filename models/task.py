"""What a task asks: of graphs or of their nodes, and what its numbers mean."""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from models.errors import InvalidInputError, UnknownTaskError
from models.names import check_labels

Level = Literal["graph", "node"]
Target = Literal["multilabel", "multiclass", "regression", "energy_and_forces"]
"""`multilabel`: a probability for each label by itself. `multiclass`: probabilities of classes,
which sum to 1. `regression`: numbers as they are. `energy_and_forces`: the energy of a graph (eV),
and minus its gradient at every atom (eV / Angstrom)."""


class TaskInfo(BaseModel):
    """A task: its label names in the order of the head, one line about it, and what its answers
    are.

    Attributes:
        labels: names of the numbers that are answered.
        description: one line.
        level: whether a graph has an answer, or each of its nodes.
        target: what the numbers are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: tuple[str, ...] = Field(min_length=1)
    description: str = ""
    level: Level = "graph"
    target: Target = "multilabel"

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_labels(self.labels)
        if self.target == "energy_and_forces" and (
            self.level != "graph" or self.labels != ("energy",)
        ):
            raise ValueError(
                f"got labels {self.labels} at level {self.level!r}, expected ('energy',) at level"
                " 'graph' for energy_and_forces"
            )
        return self


def answers(logits: Tensor, target: Target) -> Tensor:
    """What is answered, from what a head says: (*, C) -> (*, C)."""
    if target == "multilabel":
        return logits.sigmoid()
    return logits.softmax(-1) if target == "multiclass" else logits


def select_tasks(
    known: tuple[str, ...], tasks: Sequence[str] | None
) -> tuple[tuple[str, ...], list[int]]:
    """Names and positions of the tasks that are asked for; None is all. Raises UnknownTaskError, or
    InvalidInputError if there are none."""
    names = known if tasks is None else tuple(tasks)
    if not names:
        raise InvalidInputError("got no task, expected at least one")
    if unknown := [task for task in names if task not in known]:
        raise UnknownTaskError(f"got task {unknown[0]!r}, expected one of {', '.join(known)}")
    return names, [known.index(task) for task in names]
