"""The study of GFFMerge from a pre-trained start (`gmerging study gffmerge-pretrained`): mergers of
force fields that were fine-tuned from one pre-trained network, or, as a control, from random
weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from statistics import mean
from time import process_time
from typing import Any

from merging.data.files import write_entry
from merging.families.force_fields import CHGNET_FORCE_FIELDS
from merging.mergers.base import MergeInputs
from merging.mergers.fisher import FisherOptions
from merging.mergers.force_fields import fisher, regmean
from merging.mergers.gffmerge import (
    Equations,
    Inputs,
    Model,
    Teacher,
    assembled,
    closed_form,
    match_mean_energies,
    merged_parameters,
    teacher_equations,
)
from merging.mergers.registry import MergeConfig, merge
from merging.mergers.regmean import RegMeanOptions
from merging.run.run import Run
from merging.run.scores import environment
from merging.run.stage import Stage
from merging.run.stages import ImitationStart, aligned, joint, teacher, trained_model
from merging.run.store import StageResult
from merging.studies.force_adapters import adapted_model, low_rank_adapters
from merging.studies.gffmerge import (
    ErrorsByTask,
    constant_errors,
    load_teachers,
    loaded_model,
    merge_weights,
    subset_errors,
    tune,
    untrained_model,
)
from models.errors import ConfigError
from models.networks.force_field import MergedForceField

Models = dict[str, Model]
"""Network and expert by task; the network is the same for all, but for EMR and teachers."""
SEQUENTIAL_FRAMES = {"md17": 12, "lips20": 4}
"""Number of training frames of a task that the sequential variants use."""
SLOPE_STEP = 0.3
"""In Angstrom, of the variant with slopes (`merging.mergers.gffmerge.closed_form`)."""
PUBLISHED_RIDGE = 1e-6
RIDGES = (1e-6, 1e-3, 1e-1)
SHARES = (0.6, 1.0, 1.4, 2.0)
"""Candidates of task arithmetic: its factor times the number of tasks; 1 is the mean."""
DENSITIES, SCALINGS = (0.2, 0.5, 0.8), (0.5, 1.0, 1.5)
"""Candidates of TIES."""
RANKS = (4, 16)
"""Ranks of what a task adds to a matrix; most matrices are 64 by 64 or larger."""
PUBLISHED_START: dict[str, Any] = {"pull": "zero"}
STEADY_START: dict[str, Any] = {"ridge": 0.1}
"""Options of the closed form where training goes on from it. The published ridge of 1e-6 to zero
leaves weights of 1e5 where the equations are nearly singular, and training from there may fail."""
CLOSED, PULLED = "closed form, as published", "closed form, ridge to the mean"
SEQUENTIAL, SLOPES = "closed form, sequential", "closed form, sequential, slopes"


@dataclass(frozen=True)
class Made:
    """What a method made.

    Attributes:
        models: by task.
        record: what was chosen on the validation frames, and the scores of the candidates.
    """

    models: Models
    record: dict[str, Any]

    @classmethod
    def shared(cls, model: MergedForceField, **record: Any) -> "Made":
        """Return one network for all tasks."""
        return cls({task: (model.network, model.expert(task)) for task in model.tasks}, record)


@dataclass(frozen=True)
class Bench:
    """A run with its loaded teachers."""

    run: Run

    @cached_property
    def teachers(self) -> dict[str, Teacher]:
        """The teachers, with `calibration_frames` structures."""
        return load_teachers(self.run, self.run.config.calibration_frames)

    @cached_property
    def equations(self) -> Equations:
        """The teachers' own normal equations."""
        return teacher_equations(self.teachers)

    @cached_property
    def few(self) -> dict[str, Teacher]:
        """The teachers, with `SEQUENTIAL_FRAMES` structures."""
        return load_teachers(self.run, SEQUENTIAL_FRAMES[self.run.config.source])

    @cached_property
    def start(self) -> Model:
        """Network and head from which all teachers started."""
        model = untrained_model(self.run)
        return model.network, model.expert(self.run.tasks[0])

    def weights(self, method: str, options: Mapping[str, Any] | None = None) -> MergedForceField:
        """Merge by a merger of weights, heads too."""
        return merge_weights(self.teachers, self.start, method, "merged", options)

    def best(
        self, make: Callable[[Any], MergedForceField], candidates: Sequence[dict[str, float]]
    ) -> Made:
        """Return the candidate with the least error of the forces on the validation frames."""
        models = [Made.shared(make(options)) for options in candidates]
        errors = [forces_error(subset_errors(self.run, made.models, "valid")) for made in models]
        best = errors.index(min(errors))
        tried = [
            {**options, "valid": error} for options, error in zip(candidates, errors, strict=True)
        ]
        return Made(models[best].models, {"options": candidates[best], "tried": tried})


def forces_error(errors: ErrorsByTask) -> float:
    """Return the mean over tasks of the error of the forces, in meV / Angstrom."""
    return mean(error["forces"] for error in errors.values())


# --- the methods ---


def _separate(bench: Bench) -> Made:
    return Made({task: (own.network, own.expert) for task, own in bench.teachers.items()}, {})


def _arithmetic(bench: Bench) -> Made:
    candidates = [{"scaling": share / len(bench.run.tasks)} for share in SHARES]
    return bench.best(partial(bench.weights, "task_arithmetic"), candidates)


def _ties(bench: Bench) -> Made:
    pairs = product(DENSITIES, SCALINGS)
    candidates = [{"density": density, "scaling": scaling} for density, scaling in pairs]
    return bench.best(partial(bench.weights, "ties"), candidates)


def _by_task(method: str, options: Mapping[str, Any], bench: Bench) -> Made:
    """Merge by a merger of weights that gives a network for every task, heads too."""
    teachers = bench.teachers
    states = {
        task: merged_parameters(own.network, own.expert, "merged") for task, own in teachers.items()
    }
    base = merged_parameters(*bench.start, "merged")
    result = merge(method, MergeInputs(base, states, bench.run.config.network), options)
    models = {}
    for task, own in teachers.items():
        model = assembled({task: own}, result.by_task[task])
        models[task] = Made.shared(match_mean_energies(model, {task: own})).models[task]
    return Made(models, result.record)


def _published(bench: Bench) -> Made:
    return Made.shared(
        closed_form(bench.teachers, PUBLISHED_RIDGE, pull="zero", known=bench.equations)
    )


def _pulled(bench: Bench) -> Made:
    def solved(options: Mapping[str, float]) -> MergedForceField:
        return closed_form(bench.teachers, options["ridge"], known=bench.equations)

    return bench.best(solved, [{"ridge": ridge} for ridge in RIDGES])


def _sequential(slopes: float, bench: Bench) -> Made:
    ridge = bench.run.result(measurement(bench, PULLED)).record["options"]["ridge"]
    inputs: Inputs = "merged"
    model = closed_form(bench.few, ridge, inputs, slopes=slopes)
    return Made.shared(model, options={"ridge": ridge})


def _fisher(bench: Bench) -> Made:
    return Made.shared(fisher(bench.few, FisherOptions(), bench.run.seed))


def _tuned(make: Callable[[Bench], Made], bench: Bench) -> Made:
    run = bench.run
    settings = run.config.tuning

    def start() -> MergedForceField:
        models = make(bench).models
        network = models[run.tasks[0]][0]
        return MergedForceField(network, {task: expert for task, (_, expert) in models.items()})

    return Made.shared(tune(run, start, "heads", settings, settings.frames))


def _trained(stage: Callable[[Run], Stage], bench: Bench) -> Made:
    return Made.shared(loaded_model(bench.run, trained_model(bench.run, stage(bench.run))))


def imitating(run: Run, merge: dict[str, Any]) -> Run:
    """Return the run with joint alignment by the settings of joint training, and with the closed
    form of the given options, heads of the tasks' own, as its merged start."""
    merged = MergeConfig(method="gffmerge", options=merge)
    changes = {"joint_alignment": run.config.training, "merge": merged, "tuning": None}
    return replace(run, config=run.config.model_copy(update=changes))


def _aligned(merge: dict[str, Any], start: ImitationStart, run: Run) -> Stage:
    return aligned(imitating(run, merge), start)


def adapters_by_task(rank: int, run: Run) -> dict[str, Stage]:
    """Return the stages that train adapters on the published closed form, by task."""
    published = imitating(run, PUBLISHED_START)
    return {task: low_rank_adapters(rank, published, task) for task in run.tasks}


def _adapted(rank: int, bench: Bench) -> Made:
    run, stages = imitating(bench.run, PUBLISHED_START), adapters_by_task(rank, bench.run)
    models = {task: adapted_model(rank, run, task) for task in stages}
    numbers = run.result(stages[run.tasks[0]]).record["numbers"]
    return Made(models, {"rank": rank, "numbers": numbers})


def _start(bench: Bench) -> Made:
    return Made.shared(untrained_model(bench.run))


def _mean(bench: Bench) -> Made:
    return Made.shared(bench.weights("weight_average"))


def _regmean(bench: Bench) -> Made:
    return Made.shared(regmean(bench.teachers, RegMeanOptions(), bench.equations))


_SLOPES = partial(_sequential, SLOPE_STEP)
TRAINED: dict[str, Callable[[Run], Stage]] = {
    "joint training": joint,
    "joint alignment": partial(_aligned, STEADY_START, "merged"),
    "joint alignment, from the published form": partial(_aligned, PUBLISHED_START, "merged"),
    "joint alignment, from the start": partial(_aligned, PUBLISHED_START, "pretrained"),
}
"""Stages that train one network for all tasks: with labels, or to answer like the teachers."""
ADAPTED = {f"adapters, rank {rank}": rank for rank in RANKS}
METHODS: dict[str, Callable[[Bench], Made]] = {
    "start": _start,
    "separate": _separate,
    "mean": _mean,
    "task arithmetic": _arithmetic,
    CLOSED: _published,
    "RegMean": _regmean,
    "EMR": partial(_by_task, "emr", {}),
    **{f"residual, rank {rank}": partial(_by_task, "residual", {"rank": rank}) for rank in RANKS},
    "TIES": _ties,
    PULLED: _pulled,
    SEQUENTIAL: partial(_sequential, 0.0),
    SLOPES: _SLOPES,
    "Fisher": _fisher,
    "start, heads tuned": partial(_tuned, _start),
    "mean, heads tuned": partial(_tuned, _mean),
    f"{CLOSED}, heads tuned": partial(_tuned, _published),
    f"{SLOPES}, heads tuned": partial(_tuned, _SLOPES),
    **{name: partial(_trained, stage) for name, stage in TRAINED.items()},
    **{name: partial(_adapted, rank) for name, rank in ADAPTED.items()},
}
"""All methods that make models, in the order in which they are measured."""
NO_MODEL = "no model"
_WITHOUT_TEACHERS = ("start", "start, heads tuned")


# --- the measurements ---


def measurement(bench: Bench, name: str) -> Stage:
    """Return the stage that measures a method on the test frames; its record has `errors` by task,
    the CPU `seconds` of making the models, and what was chosen."""
    run, config = bench.run, bench.run.config
    grids = *RIDGES, *SHARES, *DENSITIES, *SCALINGS, SLOPE_STEP, SEQUENTIAL_FRAMES[config.source]
    sizes = config.frames, config.network, config.tuning, config.calibration_frames
    settings = name, *grids, *sizes, run.initial_fingerprint, *run.tasks
    path = f"measured/{config.source}/{config.network.kind}/{name.replace(' ', '_')}"
    return Stage(path, run.seed, settings, _inputs(bench, name), partial(_measure, bench, name))


def _inputs(bench: Bench, name: str) -> tuple[Stage, ...]:
    run = bench.run
    if name in _WITHOUT_TEACHERS:
        return ()
    if name in TRAINED:
        return (TRAINED[name](run),)
    if name in ADAPTED:
        return tuple(adapters_by_task(ADAPTED[name], run).values())
    teachers = tuple(teacher(run, task) for task in run.tasks)
    # The sequential variants take the ridge of another method.
    return (*teachers, measurement(bench, PULLED)) if name.startswith(SEQUENTIAL) else teachers


def _measure(bench: Bench, name: str, _: Path) -> StageResult:
    begin = process_time()
    made = METHODS[name](bench)
    seconds = round(process_time() - begin, 2)
    errors = subset_errors(bench.run, made.models, "test")
    return StageResult(record={"errors": errors, "seconds": seconds, **made.record})


def run_study(
    config: Any, data: Path, work: Path, seeds: Sequence[int], results: Path
) -> dict[str, Any]:
    """Train, merge and measure; the results are written after every method, and finished stages are
    not repeated.

    Args:
        config: a configuration of CHGNet force fields.
        data: the folder of `md17/` or `lips20/`.
        work: the folder of finished models and measurements.
        seeds: seeds of the order of frames and of random weights; one after the other.
        results: the results file, in which the study writes the entry `config.setting`.

    Returns:
        The entry.

    Raises:
        ConfigError: the configuration is not of CHGNet force fields, or has no `tuning`.
    """
    benches = [Bench(Run(config, seed, data, work)) for seed in seeds]
    if benches[0].run.family is not CHGNET_FORCE_FIELDS or config.tuning is None:
        expected = "expected one of CHGNet force fields with `tuning`"
        raise ConfigError(f"got configuration {config.setting!r}, {expected}")
    entry: dict[str, Any] = {
        "what": (
            "GFFMerge from a pre-trained start: mean absolute errors on test frames, energies in"
            " meV, forces in meV / Angstrom; CPU seconds of making the model, one thread, the"
            " training of teachers, of joint models and of adapters not among them"
        ),
        "settings": config.model_dump(mode="json"),
        "environment": environment(),
        "rows": {NO_MODEL: {"0": {"errors": constant_errors(benches[0].run)}}},
        "training": {},
    }
    for bench in benches:
        for name in METHODS:
            seed = str(bench.run.seed)
            record = bench.run.result(measurement(bench, name)).record
            entry["rows"].setdefault(name, {})[seed] = record
            entry["training"].setdefault(seed, {}).update(_training_of(bench.run, name))
            write_entry(results, config.setting, entry)
    return entry


def _training_of(run: Run, name: str) -> dict[str, Any]:
    """Return the record of the training that a method needs: of the teachers by task for
    "separate", else by the method's name; nothing where no weights but heads are trained."""
    if name == "separate":
        return {task: _training(run, teacher(run, task)) for task in run.tasks}
    if name in TRAINED:
        return {name: _training(run, TRAINED[name](run))}
    if name in ADAPTED:
        stages = adapters_by_task(ADAPTED[name], run)
        return {name: {task: _training(run, stage) for task, stage in stages.items()}}
    return {}


def _training(run: Run, stage: Stage) -> dict[str, Any]:
    record = trained_model(run, stage).record
    return {key: record[key] for key in ("steps", "seconds", "best_epoch", "valid")}
