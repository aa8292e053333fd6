"""The study of GFFMerge: what each merger costs in energies and forces, and how long it takes
against joint training."""

import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from merging.config.base import fingerprint
from merging.data.files import read_json, write_json
from merging.families.force_fields import ForceFieldStudyConfig
from merging.force_fields.pieces import Study
from merging.force_fields.training import Trained, evaluate, fit
from merging.mergers import gffmerge as mergers
from merging.mergers.gffmerge import Heads, Teacher
from merging.studies.results import environment
from merging.training.settings import Beginning, FitConfig
from models.networks.schnet import ForceField, ForceFieldConfig, ForceFieldExpert, MergedForceField

Make = Callable[[], MergedForceField]
ErrorsByTask = dict[str, dict[str, float]]
CLOSED, SLOPES, OWN = "closed form", "closed form, sequential, slopes", ", own heads"
RELEASED = f"{SLOPES}{OWN}, heads tuned"
_CALIBRATION_BATCH = 10
_WITHOUT_TEACHERS = (
    "no model",
    "untrained network, heads tuned",
    "untrained network, all tuned",
    "joint training",
)


def run_study(
    config: ForceFieldStudyConfig, data: Path, work: Path, seeds: Sequence[int], results: Path
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
    """
    studies = [Study(config, seed, data, work) for seed in seeds]
    entry = {
        "what": (
            "GFFMerge: mean absolute errors on test frames, energies in meV, forces in meV /"
            " Angstrom; seconds with one thread"
        ),
        "settings": config.model_dump(mode="json"),
        "seeds": list(seeds),
        "environment": environment(),
        "rows": [row for beginning in config.beginnings for row in rows_of(studies, beginning)],
        "training": [training_of(study) for study in studies],
        "seconds": [seconds_of(study) for study in studies],
    }
    write_json(results, (read_json(results) or {}) | {config.source: entry})
    return entry


def rows_of(studies: Sequence[Study], beginning: Beginning) -> list[dict[str, Any]]:
    """One row for each method: errors by seed and task, energies in meV, forces in meV /
    Angstrom."""
    by_seed = [measured(study, beginning) for study in studies]
    return [
        {"beginning": beginning, "method": name, "by_seed": [each[name] for each in by_seed]}
        for name in by_seed[0]
    ]


def measured(study: Study, beginning: Beginning) -> dict[str, ErrorsByTask]:
    """Test errors of every method on one seed."""
    teachers = teachers_of(study, beginning)
    found = {"no model": _kept(study, beginning, "no model", lambda: _no_model(study))}
    found["separate"] = _kept(study, beginning, "separate", lambda: _separate(study, beginning))
    merged = {name: cache(make) for name, make in mergers_of(study, teachers, beginning).items()}
    for name, make in methods_of(study, merged).items():
        found[name] = _kept(study, beginning, name, partial(_errors_when_made, study, make))
    return found


def methods_of(study: Study, merged: Mapping[str, Make]) -> dict[str, Make]:
    """Every method that gives one network, by name: mergers, tuning after them, and joint
    training."""
    made = dict(merged)
    nothing: Make = partial(study.untrained, study.config.tasks, study.seed)
    heads, everything = (
        study.config.tuning,
        study.config.training.model_copy(update={"epochs": study.config.tuning.epochs}),
    )
    for name in (f"mean{OWN}", f"{CLOSED}{OWN}", f"{SLOPES}{OWN}"):
        made[f"{name}, heads tuned"] = partial(tuned, study, made[name], "heads", heads)
    made["untrained network, heads tuned"] = partial(tuned, study, nothing, "heads", heads)
    for name in (f"mean{OWN}", f"{SLOPES}{OWN}"):
        made[f"{name}, all tuned"] = partial(tuned, study, made[name], "all", everything)
    made["untrained network, all tuned"] = partial(tuned, study, nothing, "all", everything)
    made["joint training"] = lambda: study.joint()[0]
    return made


def mergers_of(
    study: Study, teachers: Mapping[str, Teacher], beginning: Beginning
) -> dict[str, Make]:
    """The mergers by name; with "own heads" only the interaction blocks are shared."""
    config, start = study.config.merge, study.untrained(study.config.tasks, study.seed)
    initial = (
        (start.network, start.expert(study.config.tasks[0])) if beginning == "shared" else None
    )
    few = {task: fewer(teacher, config.sequential_graphs) for task, teacher in teachers.items()}
    made: dict[str, Make] = {}
    kinds: tuple[tuple[str, Heads], ...] = (("", "merged"), (OWN, "own"))
    for ending, heads in kinds:
        made[f"mean{ending}"] = partial(mergers.mean, teachers, heads)
        made[f"TIES{ending}"] = partial(mergers.ties, teachers, initial, config.ties, heads)
        made[f"{CLOSED}{ending}"] = partial(
            mergers.closed_form, teachers, config.ridge, "teacher", heads
        )
        made[f"{CLOSED}, sequential{ending}"] = partial(
            mergers.closed_form, few, config.ridge, "sequential", heads
        )
        made[f"{SLOPES}{ending}"] = partial(
            mergers.closed_form, few, config.ridge, "sequential", heads, config.slopes
        )
    return made


def teachers_of(study: Study, beginning: Beginning) -> dict[str, Teacher]:
    """The trained teachers with the structures that mergers may see."""
    found = {}
    for task, dataset in study.datasets.items():
        model, _ = study.teacher(task, beginning)
        parts = dataset.split.train[: study.config.merge.graphs].split(_CALIBRATION_BATCH)
        found[task] = Teacher(
            model.network, model.expert(task), tuple(dataset.select(part) for part in parts)
        )
    return found


def fewer(teacher: Teacher, graphs: int) -> Teacher:
    """The same teacher with its first structures only, in whole batches: at least `graphs` of them,
    if it has so many."""
    return Teacher(
        teacher.network, teacher.expert, teacher.batches[: -(-graphs // _CALIBRATION_BATCH)]
    )


def tuned(study: Study, make: Make, trained: Trained, config: FitConfig) -> MergedForceField:
    """A model after a short training on as many labelled frames as the closed form may see."""
    model = deepcopy(make())
    with TemporaryDirectory() as folder:
        fit(
            model,
            study.datasets,
            config,
            study.seed,
            Path(folder) / "resume.pt",
            trained,
            study.config.merge.graphs,
        )
    return model


def errors_of(study: Study, model: MergedForceField) -> ErrorsByTask:
    """Test errors by task."""
    return {
        task: asdict(evaluate(model, task, dataset, dataset.split.test))
        for task, dataset in study.datasets.items()
    }


def _errors_when_made(study: Study, make: Make) -> ErrorsByTask:
    return errors_of(study, make())


def _separate(study: Study, beginning: Beginning) -> ErrorsByTask:
    found: ErrorsByTask = {}
    for task, dataset in study.datasets.items():
        found[task] = asdict(
            evaluate(study.teacher(task, beginning)[0], task, dataset, dataset.split.test)
        )
    return found


def _no_model(study: Study) -> ErrorsByTask:
    """The mean energy of the training frames, and no force at all: what a merged model must beat to
    be of any use."""
    found: ErrorsByTask = {}
    for task, dataset in study.datasets.items():
        train, test = dataset.split.train, dataset.split.test
        energy = (dataset.energy[test] - dataset.energy[train].mean()).abs().mean()
        found[task] = {
            "energy": 1e3 * float(energy),
            "forces": 1e3 * float(dataset.forces[test].abs().mean()),
        }
    return found


def _kept(
    study: Study, beginning: Beginning, name: str, make: Callable[[], ErrorsByTask]
) -> ErrorsByTask:
    """A measurement of one method, made now or read back."""
    path = _path(study, name, *([] if name in _WITHOUT_TEACHERS else [beginning]))
    stored: ErrorsByTask | None = read_json(path)
    if stored is None:
        stored = make()
        write_json(path, stored)
    return stored


def _path(study: Study, *names: str) -> Path:
    """Where a measurement is kept: another seed or setting is another file."""
    key = fingerprint(study.config.model_copy(update={"beginnings": ()}), study.seed, *names)
    return study.work / study.config.source / "measured" / f"{key}.json"


def training_of(study: Study) -> dict[str, Any]:
    """How long training took (in its own process), and the validation error of joint training by
    epoch."""
    joint = study.joint()[1]
    teachers = {
        f"{beginning}, {task}": study.teacher(task, beginning)[1]["seconds"]
        for beginning in study.config.beginnings
        for task in study.config.tasks
    }
    return {"seed": study.seed, "joint": joint, "teacher_seconds": teachers}


def seconds_of(study: Study) -> dict[str, float]:
    """Seconds of one joint epoch and of each merger, one after the other in this process; kept. The
    joint training takes `epochs` of them."""
    path = _path(study, "seconds")
    stored: dict[str, float] | None = read_json(path)
    if stored is None:
        one = study.config.training.model_copy(update={"epochs": 1})
        with TemporaryDirectory() as folder:
            model = study.untrained(study.config.tasks, study.seed)
            stored = {
                "one joint epoch": fit(
                    model, study.datasets, one, study.seed, Path(folder) / "resume.pt"
                )["seconds"]
            }
        teachers = teachers_of(study, "shared")
        for name, make in methods_of(study, mergers_of(study, teachers, "shared")).items():
            if name.endswith(OWN) or name == RELEASED:
                start = time.perf_counter()
                make()
                stored[name] = round(time.perf_counter() - start, 6)
        write_json(path, stored)
    return stored


def release_force_field(
    study: Study, method: str = RELEASED
) -> tuple[ForceFieldConfig, ForceField, dict[str, ForceFieldExpert], dict[str, Any]]:
    """A merged model of teachers that had one beginning, for an artifact: shape, shared blocks,
    experts by task, and how it was made."""
    model = methods_of(study, mergers_of(study, teachers_of(study, "shared"), "shared"))[method]()
    record = {
        "method": method,
        "seed": study.seed,
        "settings": study.config.model_dump(mode="json"),
        "test": errors_of(study, model),
    }
    return (
        study.config.network,
        model.network,
        {task: model.expert(task) for task in model.tasks},
        record,
    )
