"""Study: merging of models for graphs that are no molecules, from GCC's data sets (Qiu et al. 2020,
arXiv:2006.09963), as in the generalisation table of G-Merging."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from merging.data.files import write_entry
from merging.mergers.registry import MergeConfig
from merging.run.run import Run
from merging.run.scores import (
    Method,
    StatisticsKinds,
    environment,
    evaluate,
    evaluation,
    finetuned_method,
    gmerging_methods,
    merger_method,
    one_pass_method,
    plain_forward,
)
from merging.run.stage import Stage
from merging.run.stages import task_settings
from merging.run.store import StageResult
from merging.studies.markdown import markdown_table, over_seeds, percent
from merging.studies.report import Build
from merging.targets.probe import fit_probe
from models.data.batch import mean_readout
from models.state_dict import sub_state

SCALINGS = (0.02, 0.03, 0.05, 0.1, 0.15, 0.2)
CANDIDATES: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "pretrained": ({},),
    "weight_average": ({},),
    "task_arithmetic": tuple({"scaling": scaling} for scaling in SCALINGS),
    "ties": tuple({"scaling": scaling} for scaling in (0.1, 0.2, 0.5)),
    "emr": ({},),
    "residual": ({"rank": 4},),
    "gnnmerge_pp": ({},),
}
"""The mergers that are compared, and the options among which validation data choose. Residuals of
rank 4 add to a task about as many numbers as adapters of rank 8."""
PUBLISHED = {
    "h-index": {"task_arithmetic": 69.10, "gmerging": 72.87},
    "reddit-binary": {"task_arithmetic": 67.80, "gmerging": 70.57},
}
"""What the paper on G-Merging reports, in percent (its generalisation table)."""


def run_study(runs: Sequence[Run], path: Path, build: Build) -> dict[str, Any]:
    """Measure all methods on all tasks and write the results, after every seed anew; those of other
    settings in the file stay.

    Args:
        runs: one run per seed of a setting, which has sections `alignment` and `one_pass`; adapters
            and joint alignment start from its `merge`.
        path: the results file, in which the study writes the entry of the setting.
        build: makes stages; what is made already is not made again.

    Returns:
        The entry: {"what", "config", "seeds": {seed: {method: {"title", "merge",
        "scores": as `Method.task_scores`}}}, "summary": see `summarise`, "published",
        "environment"}.
    """
    first = runs[0]
    content: dict[str, Any] = {
        "what": "test accuracy of merged models on graphs without features",
        "config": first.config.model_dump(mode="json"),
        "graphs": {task: len(first.dataset(task).graphs) for task in first.tasks},
        "published": PUBLISHED,
        "seeds": {},
        "environment": environment(),
    }
    for run in runs:
        content["seeds"][str(run.seed)] = _measured(run, build)
        content["summary"] = summarise(content["seeds"])
        write_entry(path, first.config.setting, content)
    return content


def _measured(run: Run, build: Build) -> dict[str, Any]:
    candidates = {name: _candidates(run, name) for name in CANDIDATES}
    routed = Method("routed_merged", "Routing `merged`", run, partial(evaluation, "routed_merged"))
    corrected = *gmerging_methods(run), routed, one_pass_method(run)
    references = finetuned_method(run), *probe_methods(run)
    rows = [*references, *(row for rows in candidates.values() for row in rows), *corrected]
    build([stage for row in rows for stage in row.stages], f"seed {run.seed}")
    chosen = (max(rows, key=_validation) for rows in candidates.values())
    return {
        row.name: {
            "title": row.title,
            "merge": row.run.config.merge.model_dump(mode="json"),
            "scores": row.task_scores()["stored"],
        }
        for row in (*references, *chosen, *corrected)
    }


def _candidates(run: Run, method: str) -> list[Method]:
    return [
        merger_method(run, MergeConfig(method=method, options=dict(options)))
        for options in CANDIDATES[method]
    ]


def _validation(row: Method) -> float:
    average: float = row.task_scores()["stored"]["valid_average"]
    return average


def probe_methods(run: Run) -> list[Method]:
    """Return the rows of the network that fine-tuning starts from, and of a random one, with a
    linear probe per task (`merging.targets.probe`): what a task has without training a network."""
    random = replace(run, config=run.config.model_copy(update={"pretrained": None}))
    return [
        Method("probe", "Pre-trained network, linear probes", run, _probe),
        Method("probe_random", "Random network, linear probes", random, _probe),
    ]


def _probe(run: Run, task: str, kinds: StatisticsKinds) -> Stage:
    start = run.config.shape, run.initial_fingerprint, *task_settings(run, task)
    make, size = partial(_make_probe, run, task), run.dataset(task).size
    return Stage(f"evaluation/probe/{task}", run.seed, start, (), make, size)


def _make_probe(run: Run, task: str, _: Path) -> StageResult:
    data, state = run.dataset(task), sub_state(run.initial_state(task), "network.")
    network = run.family.network(run.config.shape)
    network.load_state_dict(state)
    network.eval()
    with torch.no_grad():
        steps = data.steps("train", run.family.evaluation_batch)
        embeddings = torch.cat([mean_readout(network(step.batch), step.batch) for step in steps])
    labels = torch.cat([step.labels for step in steps])
    head = fit_probe(embeddings, labels, data.info.target, None)
    return StageResult(
        record={"stored": evaluate(run, plain_forward(run, task, state, head), task)}
    )


def summarise(seeds: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return by method its title, its test accuracy by task over the seeds, and its average: each
    as {"mean", "std", "values"}."""
    first = next(iter(seeds.values()))
    return {
        name: {
            "title": method["title"],
            "tasks": {
                task: over_seeds(
                    [seed[name]["scores"]["accuracy"][task] for seed in seeds.values()]
                )
                for task in method["scores"]["accuracy"]
            },
            "average": over_seeds([seed[name]["scores"]["average"] for seed in seeds.values()]),
        }
        for name, method in first.items()
    }


def accuracies_table(content: Mapping[str, Any]) -> str:
    """Tabulate the study in Markdown: test accuracies in percent, means over the seeds with the
    standard deviation, a row per method."""
    summary = content["summary"]
    tasks = list(next(iter(summary.values()))["tasks"])
    rows = [
        [
            method["title"],
            *(_cell(value) for value in method["tasks"].values()),
            _cell(method["average"]),
        ]
        for method in summary.values()
    ]
    return markdown_table(["method", *tasks, "average"], rows)


def _cell(value: Mapping[str, Any]) -> str:
    return percent(value["mean"], value["std"])
