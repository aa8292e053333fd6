"""Experts of other targets for a target with few labels: which to ask by what competence, whether
the second beats the first, and whether a merged expert answers like the ensemble (`gmerging study
supervised-experts`).

Experts are the fine-tuned models of a run whose tasks are regressions of one quantity. Every task
is once the target, of which only some validation molecules are known, with their labels: for
competence, for BatchNorm statistics, and for a head. Its own expert and those of related tasks are
left out.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from merging.data.files import write_json
from merging.run.build import build
from merging.run.run import Run
from merging.run.scores import environment, predict_subset
from merging.run.stage import Stage
from merging.run.stages import teacher
from merging.run.store import StageResult
from merging.studies.experts.asking import TOP_K, Bank, Target
from merging.studies.experts.competence import NEAREST
from merging.studies.experts.metadata import (
    KNOWN,
    bank_of,
    known_molecules,
    metadata_competence,
    own_forward,
)
from merging.targets.losses import LabelScale
from merging.targets.probe import PENALTY
from models.errors import ConfigError
from models.state_dict import sub_state

Record = dict[str, Any]


def target_stage(run: Run, task: str) -> Stage:
    """Return the stage that measures a target; its record is that of `measure_target`."""
    teachers = [teacher(run, name) for name in run.tasks]
    make = partial(_make_target, run, task)
    inputs = metadata_competence(run, task), *teachers
    return Stage(f"experts/target/{task}", run.seed, (TOP_K, PENALTY), inputs, make)


def _make_target(run: Run, task: str, _: Path) -> StageResult:
    return StageResult(record=measure_target(run, task))


def measure_target(run: Run, task: str) -> Record:
    """Measure a target with every competence.

    Returns:
        "experts", scores by expert; "competence", numbers by measure and expert; "routed",
        `Bank.routed` by measure; "all", `Bank.combined` of all experts with equal weights; "start"
        and "own", scores of the pre-trained network and of the target's own expert, which was
        trained on its training part; the numbers of molecules; "seconds" of processor time.
    """
    target, metadata = Target(run, task), dict(run.result(metadata_competence(run, task)).record)
    start = time.process_time()
    bank = Bank.ask(target)
    seconds = {"metadata": metadata.pop("seconds"), "asking": time.process_time() - start}
    competence = {
        **metadata,
        "fitted_head": {name: -asked.doubt for name, asked in bank.asked.items()},
        "own_head": {name: asked.agreement for name, asked in bank.asked.items()},
    }
    everyone = torch.full((len(bank.states),), 1 / len(bank.states))
    untrained = target.ask(sub_state(run.initial_state(), "network."), None)
    return {
        "known": len(target.labels[0]),
        "test": len(target.labels[1]),
        "experts": {
            name: target.score(asked.fitted, asked.outputs) for name, asked in bank.asked.items()
        },
        "competence": competence,
        "routed": {measure: bank.routed(psi) for measure, psi in competence.items()},
        "all": bank.combined(everyone),
        "start": target.score(untrained.fitted, None),
        "own": _own_score(target),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }


def _own_score(target: Target) -> dict[str, float]:
    run, task = target.run, target.task
    outputs, _ = predict_subset(run, own_forward(run, task), task, "test")
    scale = LabelScale.fit(target.data.info, [target.data.labels[known_molecules(target.data)]])
    return target.score(scale.standardise(outputs)[:, 0], None)


def run_study(run: Run, output: Path) -> Record:
    """Measure every target, and write the results file. The same call resumes.

    Args:
        run: its tasks are regressions of one label.
        output: the JSON file.

    Returns:
        The content of the results file.

    Raises:
        ConfigError: a task is no regression of one label in the unit of the others, or a target
            has fewer than `TOP_K` experts.
    """
    check_tasks(run)
    targets = [target_stage(run, task) for task in run.tasks]
    build(targets, run.store, description=f"seed {run.seed}: targets")
    content = {
        "what": "supervised experts of other targets for a target with few labels",
        "settings": {
            "configuration": run.config.setting,
            "training": run.config.finetune.model_dump(),
            "top_k": TOP_K,
            "nearest": NEAREST,
            "known": KNOWN,
            "penalty": PENALTY,
        },
        "seed": run.seed,
        "environment": environment(),
        "targets": {
            task: run.result(stage).record for task, stage in zip(run.tasks, targets, strict=True)
        },
    }
    write_json(output, content)
    return content


def check_tasks(run: Run) -> None:
    """Raise ConfigError unless the tasks are regressions of one label in one unit, with enough
    experts."""
    kinds = {}
    for task in run.tasks:
        info = run.dataset(task).info
        kinds[task] = info.target, len(info.labels), *info.unit_of.values()
    first = kinds[run.tasks[0]]
    if other := [
        task for task in run.tasks if kinds[task] != first or first[:2] != ("regression", 1)
    ]:
        got = f"tasks {', '.join(other)} of {kinds[other[0]]}"
        raise ConfigError(f"got {got}, expected regressions of one label in one unit")
    if few := [task for task in run.tasks if len(bank_of(run, task)) < TOP_K]:
        raise ConfigError(
            f"got too few tasks for {few[0]}, expected {TOP_K} that are not related to it"
        )
