"""Every method on every task: the rows of the paper's table, ablations and sweeps."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from merging.data.molecule_dataset import load_smiles
from merging.families.molecule_config import BASE_VARIANT
from merging.mergers.registry import MergeConfig
from merging.run.run import Run
from merging.run.scores import (
    Method,
    StatisticsKinds,
    adapted_method,
    finetuned_method,
    gmerging_methods,
    joint_method,
    merger_method,
    routed_method,
    subset_metrics,
)
from merging.run.stage import Stage
from merging.run.store import StageResult
from merging.studies.forests import fit_predict, neutral
from models.data.smiles import READING_RULE


def reference_rows(run: Run) -> list[Method]:
    """What merging is measured against: one model per task, one trained on all of them, and no
    network at all."""
    rows = [finetuned_method(run)]
    if run.config.compare.multitask is not None:
        rows.append(joint_method(run, "Multi-task learning"))
    if run.config.compare.forest_trees is not None:
        name, title = "ecfp4_random_forest", "ECFP4 + random forest"
        rows.append(Method(name, title, run, partial(_forest, name, str)))
        name, title = f"{name}_neutral", "the same, charges neutralised"
        rows.append(Method(name, title, run, partial(_forest, name, neutral)))
    return rows


def candidates(run: Run, method: str) -> list[Method]:
    """A merger with each of its configured option sets."""
    return [
        merger_method(run, MergeConfig(method=method, options=options))
        for options in run.config.compare.mergers[method]
    ]


def merger_candidates(run: Run) -> list[Method]:
    """All that must be measured before mergers are chosen."""
    return [row for method in run.config.compare.mergers for row in candidates(run, method)]


def chosen_merger(run: Run, method: str) -> Method:
    """The candidate of a merger that is best by validation average with stored statistics; the
    earliest of equals."""
    rows = candidates(run, method)
    if len(rows) == 1:
        return rows[0]
    return max(rows, key=lambda row: row.task_scores()["stored"]["valid_average"])


def table_rows(run: Run) -> list[Method]:
    """All rows of a setting's table, in its order. Candidates of mergers are measured to choose
    among them."""
    chosen = (chosen_merger(run, method) for method in run.config.compare.mergers)
    return [*reference_rows(run), *chosen, *gmerging_methods(run)]


def ablation_rows(run: Run) -> dict[str, list[Method]]:
    """By group ("ablations", and each sweep) variants of G-Merging. All share `ablation_base`,
    which by itself is the first row of each group."""
    compare = run.config.compare
    base = run.with_changes(**compare.ablation_base)
    groups = {"ablations": compare.ablations, **compare.sweeps}
    return {group: _variants(base, changes) for group, changes in groups.items() if changes}


def _variants(base: Run, changes: dict[str, dict[str, dict[str, Any]]]) -> list[Method]:
    """With each task's own adapters; in a group that varies the router, routed."""
    routed = any("router" in change for change in changes.values())
    row, name = (routed_method, "gmerging_moe") if routed else (adapted_method, "gmerging_own")
    only = base.config.compare.ablation_tasks
    return [
        replace(row(base.with_changes(**change), name, title), only=only)
        for title, change in {BASE_VARIANT: {}, **changes}.items()
    ]


def _forest(
    name: str, drawn: Callable[[str], str], run: Run, task: str, kinds: StatisticsKinds
) -> Stage:
    """A random forest on fingerprints of molecules as `drawn` writes them."""
    dataset, described = run.dataset(task), run.config.dataset_for(task)
    trees = run.config.compare.forest_trees_by_task.get(task, run.config.compare.forest_trees)
    settings = trees, dataset.source_sha256, described, READING_RULE
    make = partial(_make_forest, drawn, run, task, trees)
    return Stage(f"evaluation/{name}/{task}", run.seed, settings, (), make, dataset.size)


def _make_forest(
    drawn: Callable[[str], str], run: Run, task: str, trees: int, _: Path
) -> StageResult:
    dataset, described = run.dataset(task), run.config.dataset_for(task)
    given = load_smiles(dataset, described, run.data, run.work / "data")
    answers = fit_predict(dataset, [drawn(smiles) for smiles in given], trees, run.seed)
    found: dict[str, dict[str, float]] = {}
    for subset in ("valid", "test"):
        labels = dataset.labels[getattr(dataset.split, subset)]
        found[subset] = subset_metrics(run, task, answers[subset], labels)
    return StageResult(record={"stored": found})
