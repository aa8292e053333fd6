"""Settings of a study of merged force fields: one YAML file per set of systems."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from merging.config import CONFIG_FOLDER, read_config
from merging.mergers.ties import TiesOptions
from models.force_field import ForceFieldConfig
from models.names import Name, check_distinct

FORCE_FIELD_CONFIGS = CONFIG_FOLDER / "force_fields"
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]


Beginning = Literal["shared", "different"]
"""Whether all teachers start from the same random weights, or each from its own."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FramesConfig(_Section):
    """How many frames of each system are used. Where the data come without parts, frames are drawn with the seed of the split, never of a run."""

    train: Count
    valid: Count
    test: Count


class FitConfig(_Section):
    """Training by gradients: Adam, the rate falls to 0 along a cosine.

    Attributes:
        energy_weight: of the squared error of the energy against that of the forces, both in units of the task's scale.
    """

    epochs: Count
    batch_size: Count = 10
    learning_rate: Rate = 2e-3
    energy_weight: Annotated[float, Field(ge=0)] = 0.1


class MergeConfig(_Section):
    """What the mergers go by.

    Attributes:
        graphs: training frames of each task that the closed form may see, without labels; the paper's 500. Tuning sees as many, with labels.
        sequential_graphs: of them, how many the sequential variants see: these pass through both networks once for each Linear.
        ridge: rho of the normal equations.
        slopes: in Angstrom, see `mergers.closed_form`, for the variant with slopes.
        ties: density, scaling and so on.
    """

    graphs: Count = 500
    sequential_graphs: Count = 100
    ridge: Rate = 1e-6
    slopes: Rate = 0.3
    ties: TiesOptions = TiesOptions()


class ForceFieldStudyConfig(_Section):
    """One study.

    Attributes:
        source: which data set the tasks are systems of.
        tasks: at least two, each once.
        beginnings: of the teachers; each is a column of the results.
        training: of a teacher, and of joint training, which takes as many epochs over all tasks.
        tuning: after a merge, on as many frames as `merge.graphs`: of the heads alone, or of everything.
    """

    source: Literal["md17", "lips20"]
    tasks: tuple[Name, ...]
    beginnings: tuple[Beginning, ...] = ("shared", "different")
    network: ForceFieldConfig
    frames: FramesConfig
    training: FitConfig
    merge: MergeConfig = MergeConfig()
    tuning: FitConfig

    @model_validator(mode="after")
    def _several_tasks(self) -> Self:
        if len(self.tasks) < 2 or len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks: got {list(self.tasks)}, expected two or more, each once")
        check_distinct(self.tasks)
        return self


def load_force_field_config(path: Path) -> ForceFieldStudyConfig:
    """The configuration of a study, see `merging.config.read_config`."""
    return read_config(path, ForceFieldStudyConfig, FORCE_FIELD_CONFIGS)
