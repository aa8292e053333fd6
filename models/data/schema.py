"""What models take: the input schemas of manifests."""

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.data.smiles import READING_RULE


class InputSchema(BaseModel):
    """The inputs that a model takes; part of the artifact's manifest.

    Attributes:
        kind: of input.
        by_task: name of the field that has an entry for every task; None where all tasks take the
            same inputs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    by_task: ClassVar[str | None] = None

    kind: str

    def check_tasks(self, tasks: Iterable[str]) -> None:
        """Raises ValueError: the entries are not for exactly these tasks."""
        entries = tasks if self.by_task is None else getattr(self, self.by_task)
        if set(entries) != set(tasks):
            got = f"input.{self.by_task}: got entries for {list(entries)!a}"
            raise ValueError(f"{got}, expected one for each task")

    def for_tasks(self, tasks: Iterable[str]) -> Self:
        """The schema with the entries of these tasks only."""
        if self.by_task is None:
            return self
        entries = getattr(self, self.by_task)
        return self.model_copy(update={self.by_task: {task: entries[task] for task in tasks}})

    def of_task(self, task: str) -> dict[str, Any]:
        """The task's entry under the name of its field; empty where all tasks take the same
        inputs."""
        return {} if self.by_task is None else {self.by_task: getattr(self, self.by_task)[task]}


class MoleculeInput(InputSchema):
    """Molecules, as text or as graphs in the vocabulary of Hu et al. 2020
    (`models.data.molecule.MolGraph`).

    Attributes:
        reading_rule: by which molecules were read when its scores were measured
            (`models.data.smiles.READING_RULE`); 1 where a manifest does not say. Whatever it is,
            molecules are read by today's rule.
    """

    kind: Literal["molecule"] = "molecule"
    reading_rule: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _check_rule(self) -> Self:
        if self.reading_rule > READING_RULE:
            got = f"reading_rule: got {self.reading_rule}, expected at most {READING_RULE}"
            raise ValueError(f"{got}: a newer version of G-Merging reads it")
        return self


class FeatureInput(InputSchema):
    """Graphs with numeric node features.

    Attributes:
        num_features: by task, how many numbers a node has. Where that is not the network's width,
            the task brings an encoder.
    """

    by_task = "num_features"

    kind: Literal["graph"] = "graph"
    num_features: dict[str, Annotated[int, Field(ge=1)]]


class AtomsInput(InputSchema):
    """Atoms with positions, in a periodic cell or in none (`models.data.atoms.Atoms`).

    Attributes:
        elements: by task, the atomic numbers that it was trained on; others are refused.
    """

    by_task = "elements"

    kind: Literal["atoms"] = "atoms"
    elements: dict[
        str, Annotated[tuple[Annotated[int, Field(ge=1, le=118)], ...], Field(min_length=1)]
    ]
