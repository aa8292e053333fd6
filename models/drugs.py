"""Answers of a model for approved drugs, as quantiles: what share of drugs has lower answers?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.numpy import load, save

from models.errors import ArtifactError
from models.experts.combination import ExpertChoice
from models.task import TaskInfo

Floats = NDArray[np.float32]
_LEVELS = "levels"
_QUANTILES = "quantiles/"


class DrugInfo(BaseModel):
    """Description of a table of drugs; travels in the artifact's manifest.

    Attributes:
        molecules: number of drugs whose answers the quantiles are of.
        unreadable: number of other ones in the file that could not be read.
        source: where the list of drugs is from, with its version.
        date: of the list.
        terms: under which the list may be used.
        sha256: of the file.
        in_training: number of drugs that are training molecules of one of the tasks: the same
            canonical SMILES.
        in_training_by_task: the same by task.
        experts: by task, which experts gave the answers: the default ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    molecules: int = Field(ge=1, description="number of drugs, whose answers are compared")
    unreadable: int = Field(0, ge=0, description="drugs of the list that could not be read")
    source: str = Field(min_length=1, description="where the list is from, with its version")
    date: str = Field(min_length=1, description="of the list")
    terms: str = Field(min_length=1, description="under which the list may be used")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the list's file")
    in_training: int = Field(
        ge=0, description="drugs that are training molecules of one of the tasks"
    )
    in_training_by_task: dict[str, int] = Field(description="the same by task")
    experts: dict[str, ExpertChoice] = Field(
        min_length=1, description="by task, the experts whose answers are compared"
    )

    def for_tasks(self, tasks: Sequence[str]) -> Self | None:
        """Return the description without other tasks; None if none of these is left. The numbers
        of drugs stay."""
        left = [task for task in self.experts if task in tasks]
        if not left:
            return None
        known = {task: self.in_training_by_task[task] for task in left}
        experts = {task: self.experts[task] for task in left}
        return self.model_copy(update={"in_training_by_task": known, "experts": experts})


@dataclass(frozen=True, eq=False)
class DrugTable:
    """Quantiles of the answers for drugs.

    Attributes:
        levels: (Q,) percentages, from 0 to 100, rising.
        quantiles: by task, (L, Q): of every label the answers at these levels, not falling.
    """

    levels: Floats
    quantiles: Mapping[str, Floats]

    @classmethod
    def of(cls, answers: Mapping[str, NDArray[Any]]) -> Self:
        """Make the table of answers, by task (drugs, L)."""
        levels = quantile_levels()
        return cls(
            levels,
            {
                task: np.quantile(values.astype(np.float64), levels / 100, axis=0)
                .T.astype(np.float32)
                .copy()
                for task, values in answers.items()
            },
        )

    def percentiles(self, task: str, answers: NDArray[Any]) -> NDArray[np.float64]:
        """Return what percentage of drugs has lower answers, counting half of equal ones.

        Between two quantiles it is interpolated. 0 is below, or at, the answers of all drugs, 100
        above or at them.

        Args:
            task: of the table.
            answers: (G, L), of molecules.

        Returns:
            (G, L), rounded to two decimals.
        """
        found = np.empty(answers.shape)
        for label, quantiles in enumerate(self.quantiles[task]):
            column = answers[:, label].astype(np.float32)
            first = np.searchsorted(quantiles, column, "left")
            last = np.searchsorted(quantiles, column, "right") - 1
            # An answer that several quantiles share lies in the middle of them.
            middle = (self.levels[first.clip(max=len(quantiles) - 1)] + self.levels[last]) / 2
            between = np.interp(column, quantiles, self.levels)
            found[:, label] = np.where(first <= last, middle, between)
        return found.round(2)

    def for_tasks(self, tasks: Sequence[str]) -> Self | None:
        """Return the table without other tasks; None if none of these is left."""
        left = {task: self.quantiles[task] for task in self.quantiles if task in tasks}
        return type(self)(self.levels, left) if left else None

    def to_bytes(self) -> bytes:
        """Return the content of the table's file, in the format of safetensors."""
        named = {f"{_QUANTILES}{task}": values for task, values in self.quantiles.items()}
        return save({_LEVELS: self.levels, **named})

    @classmethod
    def read(cls, data: bytes, tasks: Mapping[str, TaskInfo]) -> Self:
        """Read the content of a table's file.

        Args:
            data: of the file.
            tasks: the tasks that it must have.

        Raises:
            ArtifactError: an array is missing, unexpected, of another type or shape, not finite, or
                not in order; the message names it.
        """
        try:
            arrays = load(data)
        except SafetensorError as error:
            raise ArtifactError(str(error)) from error
        expected = {_LEVELS, *(f"{_QUANTILES}{task}" for task in tasks)}
        if arrays.keys() != expected:
            got = f"got arrays {', '.join(sorted(arrays))}"
            raise ArtifactError(f"{got}, expected {', '.join(sorted(expected))}")
        levels = arrays[_LEVELS]
        _check(_LEVELS, levels, (max(2, levels.size),))
        if (levels[0], levels[-1]) != (0, 100) or (np.diff(levels) <= 0).any():
            raise ArtifactError(f"{_LEVELS}: got {levels[:5]} ..., expected 0, rising to 100")
        quantiles = {task: arrays[f"{_QUANTILES}{task}"] for task in tasks}
        for task, values in quantiles.items():
            _check(f"{_QUANTILES}{task}", values, (len(tasks[task].labels), levels.size))
        return cls(levels, quantiles)


def quantile_levels() -> Floats:
    """Return the levels of quantiles in percent: every half percent, and every tenth of one in the
    outermost percents, (217,)."""
    tail = np.arange(0, 10) / 10
    return np.concatenate([tail, np.arange(1, 99.5, 0.5), 100 - tail[::-1]]).astype(np.float32)


def _check(name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.dtype != np.float32 or array.shape != shape:
        got = f"{name}: got {array.dtype} {array.shape}"
        raise ArtifactError(f"{got}, expected float32 {shape}")
    if not np.isfinite(array).all():
        raise ArtifactError(f"{name}: got numbers that are not finite")
    if (np.diff(array) < 0).any():
        raise ArtifactError(f"{name}: got falling numbers, expected quantiles in order")
