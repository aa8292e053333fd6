"""The study of GFFMerge: what each merger costs in energies and forces, and how long it takes
against joint training: `gmerging study gffmerge`."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from merging.config.training import Initialisation, TrainingConfig
from merging.data.files import read_json, write_json
from merging.families.force_fields import FORCE_FIELDS
from merging.family import StateDict
from merging.mergers.base import MergeInputs
from merging.mergers.gffmerge import Heads, Inputs, Teacher, closed_form, match_mean_energies
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
from models.networks.schnet import ForceField, ForceFieldExpert, MergedForceField
from models.state_dict import load_tensors

Make = Callable[[], MergedForceField]
ErrorsByTask = dict[str, dict[str, float]]
CLOSED, SLOPES, OWN = "closed form", "closed form, sequential, slopes", ", own heads"
RELEASED = f"{SLOPES}{OWN}, heads tuned"
FRAMES = {"md17": 500, "lips20": 100}
"""Training frames of each task that the closed form may see, and that tuning sees with labels; the
sequential variants see as many as the configuration says (`calibration_frames`)."""
SLOPE = 0.3
"""In Angstrom, of the variants with slopes."""
BEGINNINGS: dict[str, tuple[Initialisation, ...]] = {
    "md17": ("shared", "different"),
    "lips20": ("shared",),
}
"""Of the teachers; each is a column of the results."""
_WITHOUT_TEACHERS = (
    "no model",
    "untrained network, heads tuned",
    "untrained network, all tuned",
    "joint training",
)
_HEAD = ("lin1.", "lin2.")


def run_study(
    config: Any, data: Path, work: Path, seeds: Sequence[int], results: Path
) -> dict[str, Any]:
    """Train, merge, measure, and write the results as JSON; what is finished already is read back.

    Args:
        config: the systems and the sizes.
        data: folder that holds `md17/` or `lips20/`.
        work: finished models and measurements, so that a stopped study goes on where it was.
        seeds: of the weights and the order of frames.
        results: a JSON file of several studies; this one becomes its entry `config.source`.

    Returns:
        The entry.

    Raises:
        ConfigError: the configuration is not of force fields, or does not tune heads.
    """
    runs = [Run(config, seed, data, work) for seed in seeds]
    if runs[0].family is not FORCE_FIELDS or config.tuning is None:
        raise ConfigError(
            f"got configuration {config.setting!r}, expected one of force fields with `tuning`"
        )
    beginnings = BEGINNINGS[config.source]
    entry = {
        "what": (
            "GFFMerge: mean absolute errors on test frames, energies in meV, forces in meV /"
            " Angstrom; seconds with one thread"
        ),
        "settings": {**config.model_dump(mode="json"), "beginnings": list(beginnings)},
        "seeds": list(seeds),
        "environment": environment(),
        "rows": [row for beginning in beginnings for row in rows_of(runs, beginning)],
        "training": [training_of(run, beginnings) for run in runs],
        "seconds": [run.result(_timing(run)).record for run in runs],
    }
    write_json(results, (read_json(results) or {}) | {config.source: entry})
    return entry


def rows_of(runs: Sequence[Run], beginning: Initialisation) -> list[dict[str, Any]]:
    """One row for each method: errors by seed and task, energies in meV, forces in meV /
    Angstrom."""
    by_seed = [measured(started(run, beginning)) for run in runs]
    return [
        {"beginning": beginning, "method": name, "by_seed": [found[name] for found in by_seed]}
        for name in by_seed[0]
    ]


def started(run: Run, beginning: Initialisation) -> Run:
    """The run with teachers of one beginning."""
    return replace(run, config=run.config.model_copy(update={"initialisation": beginning}))


def measured(run: Run) -> dict[str, ErrorsByTask]:
    """Test errors of every method on one seed."""
    makes: dict[str, Callable[[], ErrorsByTask]] = {
        "no model": partial(_no_model, run),
        "separate": partial(_separate, run),
    }
    merged = {name: cache(make) for name, make in mergers_of(run).items()}
    for name, make in methods_of(run, merged).items():
        makes[name] = partial(_errors_when_made, run, make)
    return {name: run.result(_measurement(run, name, make)).record for name, make in makes.items()}


def _measurement(run: Run, name: str, make: Callable[[], ErrorsByTask]) -> Stage:
    """Of one method, with the stages that it may stand on."""
    config = run.config
    alone = name in _WITHOUT_TEACHERS
    inputs = () if alone else tuple(teacher(run, task) for task in run.tasks)
    settings = name, config.tuning, config.calibration_frames, FRAMES[config.source], SLOPE
    sized = (config.training, config.frames, config.network, *run.tasks)
    stages = (*inputs, joint(run)) if name == "joint training" else inputs
    return Stage(
        f"measured/{config.source}/{name.replace(' ', '_')}",
        run.seed,
        (*settings, *sized),
        stages,
        lambda _: StageResult(record=dict(make())),
    )


def methods_of(run: Run, merged: Mapping[str, Make]) -> dict[str, Make]:
    """Every method that gives one network, by name: mergers, tuning after them, and joint
    training."""
    made, config = dict(merged), run.config
    nothing: Make = partial(_untrained, run)
    heads = config.tuning
    everything = config.training.model_copy(update={"epochs": heads.epochs})
    for name in (f"mean{OWN}", f"{CLOSED}{OWN}", f"{SLOPES}{OWN}"):
        made[f"{name}, heads tuned"] = partial(tuned, run, made[name], "heads", heads)
    made["untrained network, heads tuned"] = partial(tuned, run, nothing, "heads", heads)
    for name in (f"mean{OWN}", f"{SLOPES}{OWN}"):
        made[f"{name}, all tuned"] = partial(tuned, run, made[name], "all", everything)
    made["untrained network, all tuned"] = partial(tuned, run, nothing, "all", everything)
    made["joint training"] = lambda: _assembled(run, trained_model(run, joint(run)))
    return made


def mergers_of(run: Run) -> dict[str, Make]:
    """The mergers by name; with "own heads" only the interaction blocks are shared."""
    ridge = float(run.config.merge.options.get("ridge", 1e-6))
    most, few = (
        cache(partial(teachers_of, run, count))
        for count in (FRAMES[run.config.source], run.config.calibration_frames)
    )

    def solved(seen: Callable[[], dict[str, Teacher]], inputs: Inputs, heads: Heads) -> Make:
        return lambda: closed_form(seen(), ridge, inputs, heads)

    def with_slopes(heads: Heads) -> Make:
        return lambda: closed_form(few(), ridge, "merged", heads, SLOPE)

    def of_weights(method: str, heads: Heads) -> Make:
        start = _beginning(run) if run.config.initialisation == "shared" else None
        return lambda: averaged(most(), start, method, heads)

    made: dict[str, Make] = {}
    kinds: tuple[tuple[str, Heads], ...] = (("", "merged"), (OWN, "own"))
    for ending, heads in kinds:
        made[f"mean{ending}"] = of_weights("weight_average", heads)
        made[f"TIES{ending}"] = of_weights("ties", heads)
        made[f"{CLOSED}{ending}"] = solved(most, "teacher", heads)
        made[f"{CLOSED}, sequential{ending}"] = solved(few, "merged", heads)
        made[f"{SLOPES}{ending}"] = with_slopes(heads)
    return made


def averaged(
    teachers: Mapping[str, Teacher],
    start: tuple[ForceField, ForceFieldExpert] | None,
    method: str,
    heads: Heads,
    options: Mapping[str, Any] | None = None,
) -> MergedForceField:
    """The teachers merged by a merger of weights, with one head or each task's own.

    Args:
        teachers: by task.
        start: where all began; None where each had its own beginning, and merging starts from 0.
        method, options: of the registry.
        heads: merged too, or each task's own.
    """
    weights = {task: _weights(own.network, own.expert, heads) for task, own in teachers.items()}
    first = next(iter(teachers.values()))
    base = _weights(*(start or (first.network, first.expert)), heads)
    if start is None:
        base = {name: torch.zeros_like(value) for name, value in base.items()}
    inputs = MergeInputs(base, weights, first.network.config)
    merged = merge(method, inputs, options).backbone
    model = _copied(teachers)
    for module in (model.network, *(model.expert(task) for task in model.tasks)):
        own = module.state_dict()
        module.load_state_dict(own | {key: value for key, value in merged.items() if key in own})
    return match_mean_energies(model, teachers)


def teachers_of(run: Run, frames: int) -> dict[str, Teacher]:
    """The trained teachers with the first so many training structures, in batches."""
    found = {}
    for task in run.tasks:
        model = _assembled(run, trained_model(run, teacher(run, task)))
        size = run.family.calibration_batch
        batches, _ = run.dataset(task).calibration(frames, size, run.seed)
        found[task] = Teacher(model.network, model.expert(task), batches)
    return found


def tuned(
    run: Run, make: Make, which: TrainedParameters, config: TrainingConfig
) -> MergedForceField:
    """A model after a short training on as many labelled frames as the closed form may see."""
    frames, start = FRAMES[run.config.source], make()
    data = {task: run.dataset(task).first(frames) for task in run.tasks}
    model = MultitaskModel(run.family, run.config.network, data)
    model.network.load_state_dict(start.network.state_dict())
    for task in run.tasks:
        model.head(task).load_state_dict(start.expert(task).state_dict())
    with TemporaryDirectory() as folder:
        made = train(model, config, run.seed, Path(folder) / "resume.pt", parameters=which)
    return _assembled(run, made)


def errors_of(run: Run, model: MergedForceField) -> ErrorsByTask:
    """Test errors by task."""
    return {task: _errors(run, task, model) for task in run.tasks}


def _errors(run: Run, task: str, model: MergedForceField) -> dict[str, float]:
    family, data = run.family, run.dataset(task)
    head = model.expert(task)
    forward = partial(family.outputs, model.network, head, info=data.info, training=False)
    answers = family.predict(forward, data.steps("test", family.evaluation_batch), run.device)
    return family.metrics(*answers, data.info)


def _errors_when_made(run: Run, make: Make) -> ErrorsByTask:
    return errors_of(run, make())


def _separate(run: Run) -> ErrorsByTask:
    models = {task: _assembled(run, trained_model(run, teacher(run, task))) for task in run.tasks}
    return {task: _errors(run, task, model) for task, model in models.items()}


def _no_model(run: Run) -> ErrorsByTask:
    """The mean energy of the training frames, and no force at all: what a merged model must beat to
    be of any use."""
    found: ErrorsByTask = {}
    for task in run.tasks:
        data = run.dataset(task)
        train_rows, test = data.split.train, data.split.test
        energy = (data.energy[test] - data.energy[train_rows].mean()).abs().mean()
        forces = 1e3 * float(data.forces[test].abs().mean())
        found[task] = {"energy": 1e3 * float(energy), "forces": forces}
    return found


def training_of(run: Run, beginnings: Iterable[Initialisation]) -> dict[str, Any]:
    """How long training took (in its own process), and the validation score of joint training by
    epoch."""
    seconds = {}
    for beginning in beginnings:
        begun = started(run, beginning)
        for task in run.tasks:
            record = trained_model(begun, teacher(begun, task)).record
            seconds[f"{beginning}, {task}"] = record["seconds"]
    return {
        "seed": run.seed,
        "joint": trained_model(run, joint(run)).record,
        "teacher_seconds": seconds,
    }


def _timing(run: Run) -> Stage:
    """Seconds of one joint epoch and of each merger, one after the other in this process. The joint
    training takes `epochs` of them."""
    settings = run.config.calibration_frames, FRAMES[run.config.source], SLOPE
    inputs = tuple(teacher(run, task) for task in run.tasks)
    return Stage("seconds", run.seed, settings, inputs, partial(_time, run))


def _time(run: Run, _: Path) -> StageResult:
    one = run.config.training.model_copy(update={"epochs": 1})
    data = {task: run.dataset(task) for task in run.tasks}
    with TemporaryDirectory() as folder:
        start = run.initial_state(), run.seed
        model = initial_model(run.family, run.config.network, data, *start)
        made = train(model, one, run.seed, Path(folder) / "resume.pt")
    found = {"one joint epoch": made.record["seconds"]}
    for name, make in methods_of(run, mergers_of(run)).items():
        if name.endswith(OWN) or name == RELEASED:
            begun = time.perf_counter()
            make()
            found[name] = round(time.perf_counter() - begun, 6)
    return StageResult(record=found)


def _untrained(run: Run) -> MergedForceField:
    """All tasks as training starts from them."""
    data = {task: run.dataset(task) for task in run.tasks}
    model = initial_model(run.family, run.config.network, data, run.initial_state(), run.seed)
    experts: dict[str, Any] = {task: model.head(task) for task in run.tasks}
    network: Any = model.network
    return MergedForceField(network, experts)


def _beginning(run: Run) -> tuple[ForceField, ForceFieldExpert]:
    model = _untrained(run)
    return model.network, model.expert(run.tasks[0])


def _assembled(run: Run, made: TrainedModel) -> MergedForceField:
    """A model from its state dicts."""
    network = ForceField(run.config.network)
    load_tensors(network, made.network, "network")
    experts = {task: ForceFieldExpert(run.config.network) for task in made.heads}
    for task, expert in experts.items():
        load_tensors(expert, made.heads[task], f"head of {task}")
    return MergedForceField(network, experts)


def _copied(teachers: Mapping[str, Teacher]) -> MergedForceField:
    """The teachers' experts around a network that is to be filled."""
    first = next(iter(teachers.values())).network
    network = ForceField(first.config)
    network.load_state_dict(first.state_dict())
    experts = {task: ForceFieldExpert(first.config) for task in teachers}
    for task, expert in experts.items():
        expert.load_state_dict(teachers[task].expert.state_dict())
    return MergedForceField(network, experts)


def _weights(network: ForceField, expert: ForceFieldExpert, heads: Heads) -> StateDict:
    """What is merged, by name: parameters of the network and, where heads are merged, of the head;
    never a buffer."""
    named = {name: value.detach() for name, value in network.named_parameters()}
    if heads == "merged":
        own = expert.named_parameters()
        named |= {name: value.detach() for name, value in own if name.startswith(_HEAD)}
    return named
