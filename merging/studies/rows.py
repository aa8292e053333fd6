"""The rows of tables: reference methods, mergers, G-Merging, its ablations and sweeps."""

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
    one_pass_method,
    routed_method,
    subset_metrics,
)
from merging.run.stage import Stage
from merging.run.store import StageResult
from merging.studies.forests import fit_predict, neutralise
from models.data.smiles import READING_RULE


def reference_rows(run: Run) -> list[Method]:
    """Return the methods that merging is compared with: a model per task and, where configured,
    multi-task learning and random forests on fingerprints."""
    rows = [finetuned_method(run)]
    if run.config.compare.multitask is not None:
        rows.append(joint_method(run, "Multi-task learning"))
    if run.config.compare.forest_trees is not None:
        name, title = "ecfp4_random_forest", "ECFP4 + random forest"
        rows.append(Method(name, title, run, partial(_forest, name, str)))
        name, title = f"{name}_neutral", "the same, charges neutralised"
        rows.append(Method(name, title, run, partial(_forest, name, neutralise)))
    return rows


def candidates(run: Run, method: str) -> list[Method]:
    """Return a row for every configured set of options of a merger."""
    return [
        merger_method(run, MergeConfig(method=method, options=options))
        for options in run.config.compare.mergers[method]
    ]


def merger_candidates(run: Run) -> list[Method]:
    """Return the candidates of all mergers, which are measured before options are chosen."""
    return [row for method in run.config.compare.mergers for row in candidates(run, method)]


def chosen_merger(run: Run, method: str) -> Method:
    """Return the candidate of a merger with the best validation average with stored statistics; the
    first of equals."""
    rows = candidates(run, method)
    if len(rows) == 1:
        return rows[0]
    return max(rows, key=lambda row: row.task_scores()["stored"]["valid_average"])


def table_rows(run: Run) -> list[Method]:
    """Return the rows of a setting's table in order; measures the candidates of mergers to choose
    among them."""
    chosen = (chosen_merger(run, method) for method in run.config.compare.mergers)
    shared = [] if run.config.one_pass is None else [one_pass_method(run)]
    return [*reference_rows(run), *chosen, *gmerging_methods(run), *shared]


def ablation_rows(run: Run) -> dict[str, list[Method]]:
    """Return variants of G-Merging by group: "ablations", and the name of every sweep. The first
    row of a group is the configured `ablation_base`, which the others change."""
    compare = run.config.compare
    base = run.with_changes(**compare.ablation_base)
    groups = {"ablations": compare.ablations, **compare.sweeps}
    return {group: _variants(base, changes) for group, changes in groups.items() if changes}


def _variants(base: Run, changes: dict[str, dict[str, dict[str, Any]]]) -> list[Method]:
    """Return the base and its variants: with routing in a group that varies the router, otherwise
    with the adapters of the task."""
    routed = any("router" in change for change in changes.values())
    row, name = (routed_method, "gmerging_moe") if routed else (adapted_method, "gmerging_own")
    only = base.config.compare.ablation_tasks
    return [
        replace(row(base.with_changes(**change), name, title), only=only)
        for title, change in {BASE_VARIANT: {}, **changes}.items()
    ]


def _forest(
    name: str, rewrite: Callable[[str], str], run: Run, task: str, kinds: StatisticsKinds
) -> Stage:
    """Return the stage that scores random forests on fingerprints of rewritten SMILES."""
    dataset, spec = run.dataset(task), run.config.dataset_for(task)
    trees = run.config.compare.forest_trees_by_task.get(task, run.config.compare.forest_trees)
    settings = trees, dataset.source_sha256, spec, READING_RULE
    make = partial(_make_forest, rewrite, run, task, trees)
    return Stage(f"evaluation/{name}/{task}", run.seed, settings, (), make, dataset.size)


def _make_forest(
    rewrite: Callable[[str], str], run: Run, task: str, trees: int, _: Path
) -> StageResult:
    dataset, spec = run.dataset(task), run.config.dataset_for(task)
    smiles = load_smiles(dataset, spec, run.data, run.work / "data")
    predictions = fit_predict(dataset, [rewrite(text) for text in smiles], trees, run.seed)
    scores = {
        subset: subset_metrics(run, task, values, dataset.labels[getattr(dataset.split, subset)])
        for subset, values in predictions.items()
    }
    return StageResult(record={"stored": scores})
