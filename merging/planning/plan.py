"""The plan: which of a run's models are merged with each other. Made from distances between them,
kept in a file, applied as one run per group."""

import itertools
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from merging.config.base import Section
from merging.config.reading import only_tasks
from merging.data.files import write_json
from merging.families.molecule_config import MoleculeConfig
from merging.mergers.registry import MergeConfig
from merging.mergers.task_vector import TaskVector
from merging.planning.distances import (
    Matrix,
    Variant,
    cka_distance,
    cosine_distance,
    distance_matrix,
    feature_matrix,
    gromov_wasserstein,
)
from merging.planning.grouping import Grouping, average_linkage
from merging.run.run import Run
from merging.run.stage import Stage
from merging.run.stages import (
    calibration_graphs,
    check_adapters,
    own_network,
    teacher,
    trained,
)
from merging.run.store import StageResult
from models.errors import ConfigError
from models.state_dict import sub_state
from models.validation import problems_of

Metric = Literal["gw", "cka", "cosine"]
TITLES: dict[Metric, str] = {
    "gw": "Gromov-Wasserstein distance",
    "cka": "1 - CKA",
    "cosine": "1 - cosine of task vectors",
}
PUBLISHED = MergeConfig(method="ties", options={"density": 0.3, "scaling": 0.5})
"""What GW-SMM merges a group with."""
ALONE = MergeConfig(method="ties", options={"density": 1.0, "scaling": 1.0})
"""theta_pre + tau: a model that has its group for itself stays as it was fine-tuned."""
PROBE_BATCHES = 64
Between = Callable[[str, str], float]
# part of an artifact's name, and a folder
GroupName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class PlanSettings(Section):
    """How a plan is made.

    Attributes:
        metric: `gw` compares feature spaces, each on its own molecules; `cka` features of the same
            molecules; `cosine` task vectors.
        variant, restarts: of the Gromov-Wasserstein solver, see `gromov_wasserstein`.
        group_size: the most models in a group; 1 merges nothing, the number of tasks merges all.
    """

    metric: Metric = "gw"
    variant: Variant = "exact"
    restarts: Annotated[int, Field(ge=1)] = 4
    group_size: Annotated[int, Field(ge=1)] = 3


class Plan(Section):
    """Which models are merged with each other; what the plan file holds.

    Attributes:
        setting, seed: of the run that it was made for.
        settings: how it was made.
        models: by task, what the fine-tuned model was made from (`Stage.key`): other models need
            another plan.
        distances: (K, K), rows and columns in the order of `models`.
        groups: by name; each task is in one of them. They may be changed by hand.
        merge: how a group of several is merged.
    """

    format_version: Literal[1] = 1
    setting: str
    seed: int
    settings: PlanSettings
    models: dict[str, str]
    distances: tuple[tuple[float, ...], ...]
    groups: dict[GroupName, tuple[str, ...]]
    merge: MergeConfig = PUBLISHED

    @model_validator(mode="after")
    def _check(self) -> Self:
        grouped = [task for group in self.groups.values() for task in group]
        if sorted(grouped) != sorted(self.models) or not all(self.groups.values()):
            raise ValueError(
                f"groups: got {sorted(grouped)}, expected each of {sorted(self.models)} in one"
                " group, and no group empty"
            )
        table = (
            np.array(self.distances)
            if len({len(row) for row in self.distances}) == 1
            else np.empty(0)
        )
        if (
            table.shape != (len(self.models), len(self.models))
            or not np.isfinite(table).all()
            or not np.array_equal(table, table.T)
        ):
            raise ValueError(
                "distances: got a table that does not fit, expected a symmetric one of"
                f" {len(self.models)} rows of finite numbers"
            )
        return self

    @property
    def tasks(self) -> tuple[str, ...]:
        """In the order of the distances."""
        return tuple(self.models)

    def grouping(self) -> Grouping:
        """The linkage again, for a dendrogram."""
        return average_linkage(self.tasks, np.array(self.distances), self.settings.group_size)


# --- making ---


def plan_settings(**values: Any) -> PlanSettings:
    """Settings as they were typed. Raises ConfigError naming every one that does not fit."""
    try:
        return PlanSettings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"settings of the plan: {problems_of(error, PlanSettings)}") from error


def make_plan(run: Run, settings: PlanSettings, merge: MergeConfig = PUBLISHED) -> Plan:
    """Measure the distances between the run's fine-tuned models (a few hundred training molecules
    of each task, no labels) and group them.

    Models that are not there are fine-tuned; distances that were measured are read back.
    """
    check_adapters(run)
    tasks = run.tasks
    table = model_distances(run, settings)
    groups = average_linkage(tasks, table, settings.group_size).groups
    return Plan(
        setting=run.config.setting,
        seed=run.seed,
        settings=settings,
        models={task: teacher(run, task).key for task in tasks},
        distances=tuple(tuple(row) for row in table.tolist()),
        groups={f"group{k}": group for k, group in enumerate(groups, 1)},
        merge=merge,
    )


def model_distances(run: Run, settings: PlanSettings) -> Matrix:
    """Distances between the models of all tasks, (K, K) in the order of the configuration, 0 on the
    diagonal."""
    between = {"gw": _gromov_wasserstein_of, "cka": _cka_of, "cosine": _cosine_of}[settings.metric](
        run, settings
    )
    tasks = run.tasks
    table = np.zeros((len(tasks), len(tasks)))
    for i, k in itertools.combinations(range(len(tasks)), 2):
        first, second = sorted((tasks[i], tasks[k]))
        table[i, k] = table[k, i] = between(first, second)
    return table


def own_space(run: Run, task: str) -> Matrix:
    """Distances between a task's own molecules in the eyes of its model: those that a calibrated
    merger sees, (256, 256) or as many as there are."""
    return distance_matrix(feature_matrix(own_network(run, task), calibration_graphs(run, task)[0]))


def probe_features(run: Run, task: str) -> Tensor:
    """Features of the same molecules for every model: some of each task, about 2048 in all."""
    few = max(1, PROBE_BATCHES // len(run.tasks))
    shared = [batch for name in run.tasks for batch in calibration_graphs(run, name)[0][:few]]
    return feature_matrix(own_network(run, task), shared)


def measured(
    run: Run,
    name: str,
    first: str,
    second: str,
    space: Callable[[str], Matrix],
    settings: PlanSettings,
) -> Stage:
    """The Gromov-Wasserstein distance of two models: the fields of `GromovWasserstein` and
    "seconds" (of this process).

    Args:
        run: the run.
        name: tells these spaces from others, in the work folder.
        first, second: tasks, in order of name.
        space: distances between molecules in the eyes of a task's model.
        settings: of the solver.
    """

    def make(_: Path) -> StageResult:
        a, b, start = space(first), space(second), time.process_time()
        drawn = np.random.default_rng([run.seed, zlib.crc32(f"{first}/{second}".encode())])
        found = gromov_wasserstein(a, b, settings.variant, settings.restarts, drawn)
        seconds = round(time.process_time() - start, 6)
        return StageResult(record={**asdict(found), "seconds": seconds})

    inputs, how = (teacher(run, first), teacher(run, second)), (settings.variant, settings.restarts)
    return Stage(f"planning/{name}/{first}-{second}", run.seed, how, inputs, make)


def _gromov_wasserstein_of(run: Run, settings: PlanSettings) -> Between:
    space = cache(lambda task: own_space(run, task))
    return lambda first, second: float(
        run.result(measured(run, "gw", first, second, space, settings)).record["distance"]
    )


def _cka_of(run: Run, settings: PlanSettings) -> Between:
    features = cache(lambda task: probe_features(run, task))
    return lambda first, second: cka_distance(features(first), features(second))


def _cosine_of(run: Run, settings: PlanSettings) -> Between:
    start = sub_state(run.initial(), "network.")
    vector = cache(lambda task: TaskVector.between(start, trained(run, teacher(run, task)).network))
    return lambda first, second: cosine_distance(vector(first), vector(second))


# --- the file ---


def write_plan(plan: Plan, path: Path) -> None:
    """Write a plan as JSON."""
    write_json(path, plan.model_dump(mode="json"))


def read_plan(path: Path) -> Plan:
    """Read a plan. Raises ConfigError: there is no file, or what it holds is no plan; every problem
    is named."""
    if not path.is_file():
        raise ConfigError(f"got no plan at {path}, expected a file that `gmerging plan` wrote")
    try:
        return Plan.model_validate_json(path.read_text())
    except ValidationError as error:
        raise ConfigError(f"{path}: {problems_of(error, Plan)}") from error


# --- using ---


def planned_runs(run: Run, plan: Plan) -> dict[str, Run]:
    """By group, the run of its tasks alone: fine-tuned models are shared, what is merged, trained
    and released is the group's own.

    A group of one keeps its fine-tuned backbone (to the rounding of theta_pre + (theta_k -
    theta_pre)).

    Raises:
        ConfigError: the plan is of other tasks or of other models than the run's.
    """
    if set(plan.tasks) != set(run.tasks):
        raise ConfigError(
            f"got a plan of tasks {sorted(plan.tasks)}, expected one of the configuration's,"
            f" {sorted(run.tasks)}"
        )
    if changed := [task for task in plan.tasks if plan.models[task] != teacher(run, task).key]:
        raise ConfigError(
            f"got a plan of other models than this run's for {', '.join(changed)} (setting, seed or"
            " data), expected it made anew"
        )
    return {
        name: group_run(run, group, plan.merge if len(group) > 1 else ALONE, name)
        for name, group in plan.groups.items()
    }


def group_run(run: Run, tasks: tuple[str, ...], merge: MergeConfig, name: str) -> Run:
    """The run of some of the tasks, merged in some way; data that was read is shared."""
    release = run.config.release
    own: Mapping[str, Any] = {
        "tasks": [task for task in run.tasks if task in tasks],
        "merge": merge.model_dump(),
        "setting": f"{run.config.setting}-{name}",
        "release": release and release.model_dump() | {"name": f"{release.name}-{name}"},
    }
    values = {**only_tasks(run.config.model_dump(mode="json"), list(tasks)), **own}
    try:
        return replace(run, config=MoleculeConfig.model_validate(values))
    except ValidationError as error:
        raise ConfigError(f"group {name}: {problems_of(error, MoleculeConfig)}") from error
