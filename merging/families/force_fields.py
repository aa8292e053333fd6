"""Settings of a study of merged force fields: one YAML file per set of systems."""

from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from merging.config.base import CONFIG_FOLDER, Count, Rate, Section
from merging.config.reading import read_config
from merging.data.frames import FrameDataset, FramesConfig, read_lips20, read_md17
from merging.mergers.ties import TiesOptions
from merging.training.settings import Beginning, FitConfig
from models.names import Name, check_distinct
from models.networks.schnet import ForceFieldConfig

FORCE_FIELD_CONFIGS = CONFIG_FOLDER / "force_fields"
"""Whether all teachers start from the same random weights, or each from its own."""


class MergeConfig(Section):
    """What the mergers go by.

    Attributes:
        graphs: training frames of each task that the closed form may see, without labels; the
            paper's 500. Tuning sees as many, with labels.
        sequential_graphs: of them, how many the sequential variants see: these pass through both
            networks once for each Linear.
        ridge: rho of the normal equations.
        slopes: in Angstrom, see `mergers.closed_form`, for the variant with slopes.
        ties: density, scaling and so on.
    """

    graphs: Count = 500
    sequential_graphs: Count = 100
    ridge: Rate = 1e-6
    slopes: Rate = 0.3
    ties: TiesOptions = TiesOptions()


class ForceFieldStudyConfig(Section):
    """One study.

    Attributes:
        source: which data set the tasks are systems of.
        tasks: at least two, each once.
        beginnings: of the teachers; each is a column of the results.
        training: of a teacher, and of joint training, which takes as many epochs over all tasks.
        tuning: after a merge, on as many frames as `merge.graphs`: of the heads alone, or of
            everything.
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
    """The configuration of a study, see `merging.config.reading.read_config`."""
    return read_config(path, ForceFieldStudyConfig, FORCE_FIELD_CONFIGS)


def load_frames(config: ForceFieldStudyConfig, data: Path) -> dict[str, FrameDataset]:
    """All tasks of a study. Raises DataError: a file is absent, does not have the published form,
    or holds too few frames."""
    read = read_md17 if config.source == "md17" else read_lips20
    return {
        task: read(data / config.source / task, config.frames, config.network.cutoff)
        for task in config.tasks
    }
