"""What a task asks: of graphs or of their nodes, and what its numbers mean."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from torch import Tensor

from models.errors import InvalidInputError, UnknownTaskError
from models.names import check_labels

Level = Literal["graph", "node"]
Target = Literal["multilabel", "multiclass", "regression", "energy_and_forces"]
"""`multilabel`: a probability for each label by itself. `multiclass`: probabilities of classes,
which sum to 1. `regression`: numbers as they are. `energy_and_forces`: the energy of a graph (eV),
and minus its gradient at every atom (eV / Angstrom)."""
LabelTarget = Literal["multilabel", "multiclass", "regression"]
"""The targets whose labels are a table: a number or a class for each graph or node."""

_LONGEST_UNIT = 64  # characters


def _check_unit(unit: str) -> str:
    if len(unit) > _LONGEST_UNIT or not unit.isprintable() or unit != unit.strip():
        expected = f"expected at most {_LONGEST_UNIT} printable characters, no space around them"
        raise ValueError(f"got unit {unit[:_LONGEST_UNIT]!a}, {expected}")
    return unit


Unit = Annotated[str, AfterValidator(_check_unit)]
"""The unit of a number as it is written behind it: `log mol/L`. Empty: it is not known."""


def check_units(units: Sequence[str], labels: Sequence[str], target: Target) -> None:
    """Raises InvalidInputError: units of what is no regression, or not one for each label."""
    if units and target != "regression":
        raise InvalidInputError(f"units: got some for target {target!r}, expected a regression")
    if units and len(units) != len(labels):
        counts = f"{len(units)} for {len(labels)} labels"
        raise InvalidInputError(f"units: got {counts}, expected one for each, or none at all")


class TaskInfo(BaseModel):
    """A task: its label names in the order of the head, one line about it, and what its answers
    are.

    Attributes:
        labels: names of the numbers that are answered.
        description: one line.
        level: whether a graph has an answer, or each of its nodes.
        target: what the numbers are.
        units: of a regression, the unit of each label; none at all where no unit is known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: tuple[str, ...] = Field(min_length=1)
    description: str = ""
    level: Level = "graph"
    target: Target = "multilabel"
    units: tuple[Unit, ...] = ()

    @property
    def unit_of(self) -> dict[str, str]:
        """By label its unit, where it is known."""
        return {label: unit for label, unit in zip(self.labels, self.units, strict=False) if unit}

    @model_serializer(mode="wrap")
    def _without_absent_units(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A manifest without units is one that versions before them can read."""
        values: dict[str, Any] = handler(self)
        if not self.units:
            values.pop("units", None)
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_labels(self.labels)
        check_units(self.units, self.labels, self.target)
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
