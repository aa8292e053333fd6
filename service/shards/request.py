"""What a screening asks of a model: tasks, labels, which rows are kept, and how they are written.

Nothing here imports torch: who deals out shards, and who looks how far they are, starts at once.
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.errors import InvalidInputError, did_you_mean

if TYPE_CHECKING:
    from models.task import TaskInfo

FloatKind = Literal["float32", "float16"]
_COMPARISONS: dict[str, Callable[[Any, float], Any]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_CONDITION = re.compile(r"\s*(?P<label>\S.*?)\s*(?P<sign><=|>=|<|>)\s*(?P<value>[^<>=\s]+)\s*")


@dataclass(frozen=True)
class Condition:
    """A row is kept if the label's value compares so with the number.

    Attributes:
        label: `task.label`.
        holds: compares an array of values with `value`, element by element.
        value: the number.
    """

    label: str
    holds: Callable[[Any, float], Any]
    value: float


def condition(text: str) -> Condition:
    """Read a condition, such as `herg.blocker<0.3`.

    Raises:
        InvalidInputError: it is none.
    """
    found = _CONDITION.fullmatch(text)
    expected = "expected one such as 'herg.blocker<0.3', with <, <=, > or >="
    if found is None:
        raise InvalidInputError(f"got condition {text!a}, {expected}")
    try:
        value = float(found["value"])
    except ValueError:
        raise InvalidInputError(f"got condition {text!a}, {expected}") from None
    if value != value:
        raise InvalidInputError(f"got condition {text!a}, which nothing fulfils, {expected}")
    return Condition(found["label"], _COMPARISONS[found["sign"]], value)


class Top(BaseModel):
    """The rows of a shard with the highest values of a label, or the lowest.

    Attributes:
        count: number of rows.
        label: `task.label`.
        lowest: whether the lowest values are wanted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int = Field(ge=1)
    label: str
    lowest: bool = False


class Limits(BaseModel):
    """Limits of molecules and of passes of the model, as of the settings with these names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_atoms: int
    max_smiles_length: int
    max_batch_cost: int


class ScreenRequest(BaseModel):
    """All that the rows of a shard depend on, but for its input and the model.

    Attributes:
        tasks: names of the tasks to predict, in the model's order.
        labels: `task.label` of every column, in the model's order.
        routing: "own", "moe" or "merged".
        experts: "own", "forest" or "both"; None for each task's default.
        floats: of the columns; with float16 those that are no probabilities stay float32.
        keep: conditions; rows that do not fulfil all of them are left out.
        top: how many rows are kept, and by which label; None for all.
        smiles: whether the canonical SMILES is a column.
        smiles_column, id_field: see `FileFormat`.
        input_format: of the shards; None to go by their names.
        limits: of molecules and passes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: tuple[str, ...] = Field(min_length=1)
    labels: tuple[str, ...] = Field(min_length=1)
    routing: Literal["own", "moe", "merged"] = "own"
    experts: Literal["own", "forest", "both"] | None = None
    floats: FloatKind = "float32"
    keep: tuple[str, ...] = ()
    top: Top | None = None
    smiles: bool = True
    smiles_column: str | None = None
    id_field: str | None = None
    input_format: Literal["csv", "tsv", "smi", "sdf", "parquet"] | None = None
    limits: Limits

    @model_validator(mode="after")
    def _labels_are_columns(self) -> "ScreenRequest":
        used = [condition(text).label for text in self.keep]
        used += [] if self.top is None else [self.top.label]
        if missing := [label for label in used if label not in self.labels]:
            raise ValueError(f"got {missing[0]!a} in a condition, expected one of the labels")
        return self

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The conditions of `keep`."""
        return tuple(map(condition, self.keep))

    @property
    def keeps_all(self) -> bool:
        """Whether every row of the input is one of the output."""
        return not self.keep and self.top is None


@dataclass(frozen=True)
class ScreenModel:
    """A model to load, and what is asked of it; can be sent to another process.

    Attributes:
        artifact: folder of the model.
        digest: of the model that is meant; None if it does not matter.
        request: what is asked.
        device, threads: as of the settings with these names; None for those of the environment.
    """

    artifact: Path
    digest: str | None
    request: ScreenRequest
    device: Literal["auto", "cpu", "cuda"] | None = None
    threads: int | None = None


def chosen_labels(
    tasks: Mapping[str, "TaskInfo"],
    wanted_tasks: Sequence[str] | None,
    wanted_labels: Sequence[str],
    used: Sequence[str],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the tasks to predict and the labels to write, in the model's order.

    Args:
        tasks: of the model.
        wanted_tasks: tasks all of whose labels are written; None for all tasks, unless labels are
            named.
        wanted_labels: further labels, `task.label`.
        used: labels of conditions, which are written too.

    Raises:
        InvalidInputError: the model lacks one, or none is left.
    """
    known = [f"{task}.{label}" for task, info in tasks.items() for label in info.labels]
    for label in (*wanted_labels, *used):
        if label not in known:
            hint = did_you_mean(label[:100], known)
            expected = f"expected `task.label` of the model{hint}"
            raise InvalidInputError(f"got unknown label {label[:100]!a}, {expected}")
    if wanted_tasks is None:
        whole = set() if wanted_labels else set(tasks)
    else:
        whole = set(wanted_tasks)
        if unknown := sorted(whole - tasks.keys()):
            expected = f"expected some of {', '.join(tasks)}"
            raise InvalidInputError(f"got unknown task {unknown[0]!a}, {expected}")
    chosen = {*wanted_labels, *used}
    chosen |= {f"{task}.{label}" for task in whole for label in tasks[task].labels}
    labels = tuple(label for label in known if label in chosen)
    if not labels:
        raise InvalidInputError("got no task and no label, expected at least one")
    of = {
        task
        for task, info in tasks.items()
        if any(f"{task}.{label}" in chosen for label in info.labels)
    }
    return tuple(task for task in tasks if task in of), labels
