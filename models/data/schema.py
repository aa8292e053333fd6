"""Input schemas: which inputs the tasks of a model accept, as in the artifact's manifest."""

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.data.dmpnn_features import FeaturizerOptions, Reading
from models.data.fingerprint import FingerprintRule
from models.data.smiles import READING_RULE


class InputSchema(BaseModel):
    """Base of input schemas, the manifest's `input`.

    Attributes:
        kind: kind of input; discriminates the schemas.
        by_task: name of the field that is a dictionary with one entry per task; None if all tasks
            accept the same inputs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    by_task: ClassVar[str | None] = None

    kind: str

    def check_tasks(self, tasks: Iterable[str]) -> None:
        """Raise ValueError if the field `by_task` does not have exactly these tasks as keys."""
        entries = tasks if self.by_task is None else getattr(self, self.by_task)
        if set(entries) != set(tasks):
            got = f"input.{self.by_task}: got entries for {list(entries)!a}"
            raise ValueError(f"{got}, expected one for each task")

    def for_tasks(self, tasks: Iterable[str]) -> Self:
        """Return the schema with the entries of these tasks only."""
        if self.by_task is None:
            return self
        entries = getattr(self, self.by_task)
        return self.model_copy(update={self.by_task: {task: entries[task] for task in tasks}})

    @property
    def has_fingerprint(self) -> bool:
        """True if molecules are read with a fingerprint."""
        return False

    def without_fingerprint(self) -> Self:
        """Return the schema of the same inputs without fingerprints."""
        return self

    @property
    def tasks_on_pairs(self) -> tuple[str, ...]:
        """Tasks for which a graph says pairs of its nodes."""
        return ()

    def of_task(self, task: str) -> dict[str, Any]:
        """Return the task's entry as `{by_task: entry}`; empty if all tasks accept the same
        inputs."""
        return {} if self.by_task is None else {self.by_task: getattr(self, self.by_task)[task]}


class MoleculeInput(InputSchema):
    """Molecules, as text or as graphs with the features of Hu et al. 2020
    (`models.data.molecule.MolGraph`).

    Attributes:
        reading_rule: version of the rule by which molecules were read when the model's scores were
            measured (`models.data.smiles.READING_RULE`). Manifests without it are of version 1.
            Requests are always read by the current rule.
        fingerprint: rule of the fingerprints that the artifact's forests need
            (`models.data.fingerprint`); None, and absent in the manifest, if it has no forests.
    """

    kind: Literal["molecule"] = "molecule"
    reading_rule: Annotated[int, Field(ge=1)] = 1
    fingerprint: FingerprintRule | None = Field(None, exclude_if=lambda rule: rule is None)

    @property
    def has_fingerprint(self) -> bool:
        """True if the schema states a rule for fingerprints."""
        return self.fingerprint is not None

    def without_fingerprint(self) -> Self:
        """Return the schema without a rule for fingerprints."""
        return self.model_copy(update={"fingerprint": None})

    @model_validator(mode="after")
    def _check_rule(self) -> Self:
        if self.reading_rule > READING_RULE:
            got = f"reading_rule: got {self.reading_rule}, expected at most {READING_RULE}"
            raise ValueError(f"{got}: a newer version of G-Merging reads it")
        return self


class BondInput(InputSchema):
    """Molecules, as text or as graphs with numeric features of atoms and bonds
    (`models.data.bond_graph.BondGraph`).

    Attributes:
        options: how text is read and featurised.
        reading: whether the features are those of the text as it is written, as chemprop takes
            them, or those of the molecule's canonical SMILES.
    """

    kind: Literal["dmpnn"] = "dmpnn"
    options: FeaturizerOptions = FeaturizerOptions()
    reading: Reading = "as_written"


class FeatureInput(InputSchema):
    """Graphs with numeric node features.

    Attributes:
        num_features: by task, number of features per node. Where it is not the network's input
            width, the task's expert has an encoder.
        pair_tasks: tasks that answer for pairs of nodes; a graph gives the pairs.
    """

    by_task = "num_features"

    kind: Literal["graph"] = "graph"
    num_features: dict[str, Annotated[int, Field(ge=1)]]
    pair_tasks: tuple[str, ...] = Field((), exclude_if=lambda tasks: not tasks)

    @property
    def tasks_on_pairs(self) -> tuple[str, ...]:
        """See `InputSchema.tasks_on_pairs`."""
        return self.pair_tasks

    def for_tasks(self, tasks: Iterable[str]) -> Self:
        """Return the schema of these tasks only."""
        asked = tuple(tasks)
        pairs = tuple(task for task in self.pair_tasks if task in asked)
        return super().for_tasks(asked).model_copy(update={"pair_tasks": pairs})


class AtomsInput(InputSchema):
    """Atoms with positions, with or without a periodic cell (`models.data.atoms.Atoms`).

    Attributes:
        elements: by task, the atomic numbers in its training data; other elements are refused.
    """

    by_task = "elements"

    kind: Literal["atoms"] = "atoms"
    elements: dict[
        str, Annotated[tuple[Annotated[int, Field(ge=1, le=118)], ...], Field(min_length=1)]
    ]
