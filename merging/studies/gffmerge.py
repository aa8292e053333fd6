"""The study of GFFMerge (`gmerging study gffmerge`): errors of energies and forces after merging,
and the time of mergers compared with joint training."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from merging.config.training import Initialisation, TrainingConfig
from merging.data.files import write_entry
from merging.data.split import Subset
from merging.families.force_fields import FORCE_FIELDS
from merging.mergers.base import MergeInputs
from merging.mergers.gffmerge import (
    Heads,
    Inputs,
    Model,
    Teacher,
    assembled,
    closed_form,
    match_mean_energies,
    merged_parameters,
)
from merging.mergers.registry import merge
from merging.run.run import Run
from merging.run.scores import environment
from merging.run.stage import Stage
from merging.run.stages import joint, teacher, trained_model
from merging.run.store import StageResult
from merging.training.supervised import (
    MultitaskModel,
    TrainedModel,
    TrainedParameters,
    initial_model,
    train,
)
from models.errors import ConfigError
from models.networks.force_field import AtomNetwork, ForceFieldExpert, MergedForceField
from models.state_dict import load_tensors

Make = Callable[[], MergedForceField]
ErrorsByTask = dict[str, dict[str, float]]
CLOSED, SLOPES, OWN = "closed form", "closed form, sequential, slopes", ", own heads"
RELEASED = f"{SLOPES}{OWN}, heads tuned"
FRAMES = {"md17": 500, "lips20": 100}
"""Number of training frames of a task that the closed form uses, and that tuning uses with labels;
the sequential variants use `calibration_frames` of the configuration."""
SLOPE_STEP = 0.3
"""In Angstrom, of the variants with slopes (`merging.mergers.gffmerge.closed_form`)."""
INITIALISATIONS: dict[str, tuple[Initialisation, ...]] = {
    "md17": ("shared", "different"),
    "lips20": ("shared",),
}
"""Initialisations of the teachers by source; one column of the results for every one."""
_WITHOUT_TEACHERS = (
    "no model",
    "untrained network, heads tuned",
    "untrained network, all tuned",
    "joint training",
)


def run_study(
    config: Any, data: Path, work: Path, seeds: Sequence[int], results: Path
) -> dict[str, Any]:
    """Train, merge and measure, and write the results as JSON; finished stages are not repeated.

    Args:
        config: the configuration of force fields.
        data: the folder of `md17/` or `lips20/`.
        work: the folder of finished models and measurements.
        seeds: seeds of the weights and of the order of frames.
        results: the results file, in which the study writes the entry `config.source`.

    Returns:
        The entry.

    Raises:
        ConfigError: the configuration is not of force fields, or has no `tuning`.
    """
    runs = [Run(config, seed, data, work) for seed in seeds]
    if runs[0].family is not FORCE_FIELDS or config.tuning is None:
        expected = "expected one of force fields with `tuning`"
        raise ConfigError(f"got configuration {config.setting!r}, {expected}")
    initialisations = INITIALISATIONS[config.source]
    entry = {
        "what": (
            "GFFMerge: mean absolute errors on test frames, energies in meV, forces in meV /"
            " Angstrom; seconds with one thread"
        ),
        "settings": {**config.model_dump(mode="json"), "beginnings": list(initialisations)},
        "seeds": list(seeds),
        "environment": environment(),
        "rows": [row for start in initialisations for row in result_rows(runs, start)],
        "training": [training_record(run, initialisations) for run in runs],
        "seconds": [run.result(_timing(run)).record for run in runs],
    }
    write_entry(results, config.source, entry)
    return entry


def result_rows(runs: Sequence[Run], initialisation: Initialisation) -> list[dict[str, Any]]:
    """Return a row per method: errors by seed and task, in meV and meV / Angstrom."""
    by_seed = [measure_methods(with_initialisation(run, initialisation)) for run in runs]
    rows = {name: [errors[name] for errors in by_seed] for name in by_seed[0]}
    return [
        {"beginning": initialisation, "method": name, "by_seed": errors}
        for name, errors in rows.items()
    ]


def with_initialisation(run: Run, initialisation: Initialisation) -> Run:
    """Return the run with another initialisation of its teachers."""
    return replace(run, config=run.config.model_copy(update={"initialisation": initialisation}))


def measure_methods(run: Run) -> dict[str, ErrorsByTask]:
    """Measure the test errors of all methods with one seed: {method: {task: {quantity: error}}}."""
    makes: dict[str, Callable[[], ErrorsByTask]] = {
        "no model": partial(constant_errors, run),
        "separate": partial(_separate, run),
    }
    merged = {name: cache(make) for name, make in mergers_of(run).items()}
    for name, make in methods_of(run, merged).items():
        makes[name] = partial(_errors_when_made, run, make)
    return {name: run.result(_measurement(run, name, make)).record for name, make in makes.items()}


def _measurement(run: Run, name: str, make: Callable[[], ErrorsByTask]) -> Stage:
    """Return the stage that measures a method, with the stages that it depends on."""
    config, inputs = run.config, tuple(teacher(run, task) for task in run.tasks)
    if name in _WITHOUT_TEACHERS:
        inputs = (joint(run),) if name == "joint training" else ()
    settings = name, config.tuning, config.calibration_frames, FRAMES[config.source], SLOPE_STEP
    sizes = (config.training, config.frames, config.network, *run.tasks)
    path = f"measured/{config.source}/{name.replace(' ', '_')}"
    return Stage(path, run.seed, (*settings, *sizes), inputs, partial(_record, make))


def _record(make: Callable[[], ErrorsByTask], _: Path) -> StageResult:
    return StageResult(record=dict(make()))


def methods_of(run: Run, merged: Mapping[str, Make]) -> dict[str, Make]:
    """Return all methods that result in one network, by name: the given mergers, tuning after
    merging, and joint training."""
    methods, config = dict(merged), run.config
    initial: Make = partial(untrained_model, run)
    heads, frames = config.tuning, FRAMES[config.source]
    everything = config.training.model_copy(update={"epochs": heads.epochs})
    for name in (f"mean{OWN}", f"{CLOSED}{OWN}", f"{SLOPES}{OWN}"):
        methods[f"{name}, heads tuned"] = partial(tune, run, methods[name], "heads", heads, frames)
    methods["untrained network, heads tuned"] = partial(tune, run, initial, "heads", heads, frames)
    for name in (f"mean{OWN}", f"{SLOPES}{OWN}"):
        methods[f"{name}, all tuned"] = partial(tune, run, methods[name], "all", everything, frames)
    methods["untrained network, all tuned"] = partial(tune, run, initial, "all", everything, frames)
    methods["joint training"] = lambda: loaded_model(run, trained_model(run, joint(run)))
    return methods


def mergers_of(run: Run) -> dict[str, Make]:
    """Return the mergers by name; with "own heads" only the interaction blocks are merged."""
    ridge = float(run.config.merge.options.get("ridge", 1e-6))
    most, few = (
        cache(partial(load_teachers, run, count))
        for count in (FRAMES[run.config.source], run.config.calibration_frames)
    )

    def solved(teachers: Callable[[], dict[str, Teacher]], inputs: Inputs, heads: Heads) -> Make:
        return lambda: closed_form(teachers(), ridge, inputs, heads)

    def with_slopes(heads: Heads) -> Make:
        return lambda: closed_form(few(), ridge, "merged", heads, SLOPE_STEP)

    def of_weights(method: str, heads: Heads) -> Make:
        start = _initial(run) if run.config.initialisation == "shared" else None
        return lambda: merge_weights(most(), start, method, heads)

    mergers: dict[str, Make] = {}
    kinds: tuple[tuple[str, Heads], ...] = (("", "merged"), (OWN, "own"))
    for ending, heads in kinds:
        mergers[f"mean{ending}"] = of_weights("weight_average", heads)
        mergers[f"TIES{ending}"] = of_weights("ties", heads)
        mergers[f"{CLOSED}{ending}"] = solved(most, "teacher", heads)
        mergers[f"{CLOSED}, sequential{ending}"] = solved(few, "merged", heads)
        mergers[f"{SLOPES}{ending}"] = with_slopes(heads)
    return mergers


def merge_weights(
    teachers: Mapping[str, Teacher],
    start: tuple[AtomNetwork, ForceFieldExpert] | None,
    method: str,
    heads: Heads,
    options: Mapping[str, Any] | None = None,
) -> MergedForceField:
    """Merge teachers with a merger of weights, and align their energies.

    Args:
        teachers: by task.
        start: the common initial weights; None if they differ, which merges from 0.
        method, options: merger and options, see `merging.mergers.registry`.
        heads: "merged", or "own" to keep the head of every task.
    """
    weights = {
        task: merged_parameters(model.network, model.expert, heads)
        for task, model in teachers.items()
    }
    first = next(iter(teachers.values()))
    base = merged_parameters(*(start or (first.network, first.expert)), heads)
    if start is None:
        base = {name: torch.zeros_like(value) for name, value in base.items()}
    inputs = MergeInputs(base, weights, first.network.config)
    merged = merge(method, inputs, options).backbone
    return match_mean_energies(assembled(teachers, merged), teachers)


def load_teachers(run: Run, frames: int) -> dict[str, Teacher]:
    """Return the trained teachers with their first training structures, in batches."""
    teachers = {}
    for task in run.tasks:
        model = loaded_model(run, trained_model(run, teacher(run, task)))
        size = run.family.calibration_batch
        batches, _ = run.dataset(task).calibration(frames, size, run.seed)
        teachers[task] = Teacher(model.network, model.expert(task), batches)
    return teachers


def tune(
    run: Run, make: Make, which: TrainedParameters, config: TrainingConfig, frames: int
) -> MergedForceField:
    """Fine-tune a model on the labels of the first training frames of every task."""
    start = make()
    data = {task: run.dataset(task).first(frames) for task in run.tasks}
    model = MultitaskModel(run.family, run.config.network, data)
    model.network.load_state_dict(start.network.state_dict())
    for task in run.tasks:
        model.head(task).load_state_dict(start.expert(task).state_dict())
    with TemporaryDirectory() as folder:
        trained = train(model, config, run.seed, Path(folder) / "resume.pt", parameters=which)
    return loaded_model(run, trained)


def model_errors(run: Run, model: MergedForceField) -> ErrorsByTask:
    """Compute the test errors of a merged model by task."""
    models = {task: (model.network, model.expert(task)) for task in run.tasks}
    return subset_errors(run, models, "test")


def subset_errors(run: Run, models: Mapping[str, Model], subset: Subset) -> ErrorsByTask:
    """Compute the errors of network and expert by task, on a subset of the task's frames."""
    family, errors = run.family, {}
    for task, (network, expert) in models.items():
        data = run.dataset(task)
        forward = partial(family.outputs, network, expert, info=data.info, training=False)
        steps = data.steps(subset, family.evaluation_batch)
        errors[task] = family.metrics(*family.predict(forward, steps, run.device), data.info)
    return errors


def _errors_when_made(run: Run, make: Make) -> ErrorsByTask:
    return model_errors(run, make())


def _separate(run: Run) -> ErrorsByTask:
    models = {task: loaded_model(run, trained_model(run, teacher(run, task))) for task in run.tasks}
    own = {task: (model.network, model.expert(task)) for task, model in models.items()}
    return subset_errors(run, own, "test")


def constant_errors(run: Run) -> ErrorsByTask:
    """Return the errors of a constant prediction: the mean energy of the training frames and zero
    forces."""
    errors: ErrorsByTask = {}
    for task in run.tasks:
        data = run.dataset(task)
        train_rows, test = data.split.train, data.split.test
        energy = (data.energy[test] - data.energy[train_rows].mean()).abs().mean()
        forces = 1e3 * float(data.forces[test].abs().mean())
        errors[task] = {"energy": 1e3 * float(energy), "forces": forces}
    return errors


def training_record(run: Run, initialisations: Iterable[Initialisation]) -> dict[str, Any]:
    """Return the seconds of training the teachers, and the record of joint training with its
    validation scores by epoch."""
    seconds = {}
    for initialisation in initialisations:
        varied = with_initialisation(run, initialisation)
        for task in run.tasks:
            record = trained_model(varied, teacher(varied, task)).record
            seconds[f"{initialisation}, {task}"] = record["seconds"]
    return {
        "seed": run.seed,
        "joint": trained_model(run, joint(run)).record,
        "teacher_seconds": seconds,
    }


def _timing(run: Run) -> Stage:
    """Return the stage that times one epoch of joint training and every merger in this process."""
    settings = run.config.calibration_frames, FRAMES[run.config.source], SLOPE_STEP
    inputs = tuple(teacher(run, task) for task in run.tasks)
    return Stage("seconds", run.seed, settings, inputs, partial(_time, run))


def _time(run: Run, _: Path) -> StageResult:
    one = run.config.training.model_copy(update={"epochs": 1})
    data = {task: run.dataset(task) for task in run.tasks}
    with TemporaryDirectory() as folder:
        start = run.initial_state(), run.seed
        model = initial_model(run.family, run.config.network, data, *start)
        trained = train(model, one, run.seed, Path(folder) / "resume.pt")
    seconds = {"one joint epoch": trained.record["seconds"]}
    for name, make in methods_of(run, mergers_of(run)).items():
        if name.endswith(OWN) or name == RELEASED:
            begin = time.perf_counter()
            make()
            seconds[name] = round(time.perf_counter() - begin, 6)
    return StageResult(record=seconds)


def untrained_model(run: Run) -> MergedForceField:
    """Return the model of all tasks with its initial weights."""
    data = {task: run.dataset(task) for task in run.tasks}
    model = initial_model(run.family, run.config.network, data, run.initial_state(), run.seed)
    experts: dict[str, Any] = {task: model.head(task) for task in run.tasks}
    network: Any = model.network
    return MergedForceField(network, experts)


def _initial(run: Run) -> tuple[AtomNetwork, ForceFieldExpert]:
    model = untrained_model(run)
    return model.network, model.expert(run.tasks[0])


def loaded_model(run: Run, trained: TrainedModel) -> MergedForceField:
    """Load a trained model from its state dicts."""
    network: Any = run.family.network(run.config.network)
    load_tensors(network, trained.network, "network")
    experts = {task: ForceFieldExpert(run.config.network) for task in trained.heads}
    for task, expert in experts.items():
        load_tensors(expert, trained.heads[task], f"head of {task}")
    return MergedForceField(network, experts)
