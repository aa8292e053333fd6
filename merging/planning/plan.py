"""The plan of merging: which of a run's models are merged with each other. It is made from the
distances between them, stored in a file, and applied as one run per group."""

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
    PairDistance,
    Variant,
    cka_distance,
    cosine_distance,
    distance_matrix,
    feature_matrix,
    gromov_wasserstein,
    pair_table,
)
from merging.planning.grouping import Grouping, average_linkage
from merging.run.run import Run
from merging.run.stage import Stage
from merging.run.stages import (
    calibration_graphs,
    check_molecules,
    finetuned_network,
    teacher,
    trained_model,
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
PUBLISHED_MERGE = MergeConfig(method="ties", options={"density": 0.3, "scaling": 0.5})
"""The published merger of GW-SMM's groups."""
SINGLE_MODEL = MergeConfig(method="ties", options={"density": 1.0, "scaling": 1.0})
"""The merger of a group of one, theta_pre + tau: the model stays as it was fine-tuned."""
PROBE_BATCHES = 64
# It becomes part of an artifact's name, and the name of a folder.
GroupName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class PlanSettings(Section):
    """Settings of a plan.

    Attributes:
        metric: `gw` compares the models' feature spaces of their tasks' molecules; `cka` their
            features of the same molecules; `cosine` their task vectors.
        variant, restarts: of the Gromov-Wasserstein solver, see `gromov_wasserstein`.
        group_size: the most models in a group; 1 merges nothing, the number of tasks merges all.
    """

    metric: Metric = "gw"
    variant: Variant = "exact"
    restarts: Annotated[int, Field(ge=1)] = 4
    group_size: Annotated[int, Field(ge=1)] = 3


class Plan(Section):
    """Groups of models to be merged; the content of the plan file.

    Attributes:
        setting, seed: of the run that the plan was made for.
        settings: metric, solver and group size.
        models: by task the key of its fine-tuned model (`Stage.key`): the plan is valid for these
            models only.
        distances: (K, K), rows and columns in the order of `models`.
        groups: tasks by name of the group, every task in exactly one. They may be edited by hand.
        merge: merger of groups of several models.
    """

    format_version: Literal[1] = 1
    setting: str
    seed: int
    settings: PlanSettings
    models: dict[str, str]
    distances: tuple[tuple[float, ...], ...]
    groups: dict[GroupName, tuple[str, ...]]
    merge: MergeConfig = PUBLISHED_MERGE

    @model_validator(mode="after")
    def _check(self) -> Self:
        grouped = [task for group in self.groups.values() for task in group]
        if sorted(grouped) != sorted(self.models) or not all(self.groups.values()):
            raise ValueError(
                f"groups: got {sorted(grouped)}, expected each of {sorted(self.models)} in one"
                " group, and no group empty"
            )
        rectangular = len({len(row) for row in self.distances}) == 1
        table = np.array(self.distances) if rectangular else np.empty(0)
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
        """The tasks, in the order of the distances."""
        return tuple(self.models)

    def grouping(self) -> Grouping:
        """Cluster the distances again, for the linkage of a dendrogram."""
        return average_linkage(self.tasks, np.array(self.distances), self.settings.group_size)


# --- making a plan ---


def plan_settings(**values: Any) -> PlanSettings:
    """Validate settings from a command line. Raises ConfigError, which names every invalid one."""
    try:
        return PlanSettings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"settings of the plan: {problems_of(error, PlanSettings)}") from error


def make_plan(run: Run, settings: PlanSettings, merge: MergeConfig = PUBLISHED_MERGE) -> Plan:
    """Measure the distances between a run's fine-tuned models, and group the models by them.

    Distances are distance_stage without labels, on a few hundred training molecules per task.
    Missing models are fine-tuned first; known distances are read from the work folder.

    Args:
        run: the run.
        settings: metric, solver and group size.
        merge: merger of groups of several models.
    """
    check_molecules(run)
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
    """Measure the distances between the models of all tasks: (K, K) in the order of the
    configuration, 0 on the diagonal."""
    metrics = {"gw": _gromov_wasserstein_of, "cka": _cka_of, "cosine": _cosine_of}
    return pair_table(run.tasks, metrics[settings.metric](run, settings))


def task_space(run: Run, task: str) -> Matrix:
    """Compute the distances between a task's calibration molecules in the feature space of its
    fine-tuned model: (n, n), n = 256 or the size of the training subset."""
    return distance_matrix(
        feature_matrix(finetuned_network(run, task), calibration_graphs(run, task)[0])
    )


def shared_features(run: Run, task: str) -> Tensor:
    """Compute a fine-tuned model's features of molecules that are the same for all models, about
    2048 from all tasks together: (G, d)."""
    count = max(1, PROBE_BATCHES // len(run.tasks))
    batches = [batch for name in run.tasks for batch in calibration_graphs(run, name)[0][:count]]
    return feature_matrix(finetuned_network(run, task), batches)


def distance_stage(
    run: Run,
    name: str,
    first: str,
    second: str,
    space: Callable[[str], Matrix],
    settings: PlanSettings,
) -> Stage:
    """Return the stage that computes the Gromov-Wasserstein distance between the spaces of two
    tasks.

    Args:
        run: the run.
        name: of this kind of spaces, in the work folder.
        first, second: the tasks, in order of name.
        space: computes the distances between molecules for a task.
        settings: of the solver.

    Returns:
        A stage whose record has the fields of `GromovWasserstein`, and "seconds" of processor time.
    """

    def make(_: Path) -> StageResult:
        a, b, start = space(first), space(second), time.process_time()
        generator = np.random.default_rng([run.seed, zlib.crc32(f"{first}/{second}".encode())])
        found = gromov_wasserstein(a, b, settings.variant, settings.restarts, generator)
        seconds = round(time.process_time() - start, 6)
        return StageResult(record={**asdict(found), "seconds": seconds})

    inputs = teacher(run, first), teacher(run, second)
    solver = settings.variant, settings.restarts
    return Stage(f"planning/{name}/{first}-{second}", run.seed, solver, inputs, make)


def _gromov_wasserstein_of(run: Run, settings: PlanSettings) -> PairDistance:
    space = cache(lambda task: task_space(run, task))
    return lambda first, second: float(
        run.result(distance_stage(run, "gw", first, second, space, settings)).record["distance"]
    )


def _cka_of(run: Run, settings: PlanSettings) -> PairDistance:
    features = cache(lambda task: shared_features(run, task))
    return lambda first, second: cka_distance(features(first), features(second))


def _cosine_of(run: Run, settings: PlanSettings) -> PairDistance:
    start = sub_state(run.initial_state(), "network.")
    vector = cache(
        lambda task: TaskVector.between(start, trained_model(run, teacher(run, task)).network)
    )
    return lambda first, second: cosine_distance(vector(first), vector(second))


# --- the file ---


def write_plan(plan: Plan, path: Path) -> None:
    """Write a plan as JSON."""
    write_json(path, plan.model_dump(mode="json"))


def read_plan(path: Path) -> Plan:
    """Read a plan from its file. Raises ConfigError: the file is absent or holds no valid plan;
    every problem is named."""
    if not path.is_file():
        raise ConfigError(f"got no plan at {path}, expected a file that `gmerging plan` wrote")
    try:
        return Plan.model_validate_json(path.read_text())
    except ValidationError as error:
        raise ConfigError(f"{path}: {problems_of(error, Plan)}") from error


# --- applying a plan ---


def planned_runs(run: Run, plan: Plan) -> dict[str, Run]:
    """Return one run for every group of a plan, by name of the group.

    Fine-tuned models are shared with the whole run; backbone, adapters and artifact are the
    group's. A group of one keeps its fine-tuned backbone, up to the rounding of theta_pre +
    (theta_k - theta_pre).

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
        name: group_run(run, group, plan.merge if len(group) > 1 else SINGLE_MODEL, name)
        for name, group in plan.groups.items()
    }


def group_run(run: Run, tasks: tuple[str, ...], merge: MergeConfig, name: str) -> Run:
    """Return the run of some of a run's tasks with another merger; loaded data is shared.

    What is said of related tasks stays, those outside the group among them, so that the models of
    the tasks are the same in every group.

    Args:
        run: the whole run.
        tasks: of the group.
        merge: the group's merger.
        name: of the group, appended to the names of the setting and of the artifact.

    Raises:
        ConfigError: the resulting configuration is not valid.
    """
    release = run.config.release
    related = [group for group in run.config.related if {*group} & {*tasks}]
    described = {*tasks, *(task for group in related for task in group)}
    changes: Mapping[str, Any] = {
        "related": related,
        "datasets": {
            task: spec.model_dump(mode="json")
            for task, spec in run.config.datasets.items()
            if task in described
        },
        "tasks": [task for task in run.tasks if task in tasks],
        "merge": merge.model_dump(),
        "setting": f"{run.config.setting}-{name}",
        "release": release and release.model_dump() | {"name": f"{release.name}-{name}"},
    }
    values = {**only_tasks(run.config.model_dump(mode="json"), list(tasks)), **changes}
    try:
        return replace(run, config=MoleculeConfig.model_validate(values))
    except ValidationError as error:
        raise ConfigError(f"group {name}: {problems_of(error, MoleculeConfig)}") from error
