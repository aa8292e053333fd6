"""The study of GW-SMM: the measured loss of merging pairs of a run's models, against the distances
that a plan is made from (`gmerging study gw-smm`).

Scores are concordances (`merging.targets.metrics.concordance`): ROC-AUC for classifications, and
for regressions the same probability that two molecules are ordered rightly. 0.5 knows nothing and 1
everything, so that losses of different targets can be compared and averaged.
"""

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from merging.data.files import write_json
from merging.data.molecule_dataset import MoleculeDataset
from merging.data.split import Split, Subset
from merging.drawing.plan import draw_plan
from merging.families.molecules import MOLECULES
from merging.mergers.registry import MergeConfig
from merging.planning.distances import (
    Matrix,
    Variant,
    distance_matrix,
    feature_matrix,
    gromov_wasserstein,
    pair_table,
)
from merging.planning.grouping import Group, all_groupings, average_linkage, drawn_groupings
from merging.planning.plan import (
    PUBLISHED_MERGE,
    SINGLE_MODEL,
    Metric,
    PlanSettings,
    distance_stage,
    group_run,
    make_plan,
    model_distances,
    task_space,
)
from merging.run.build import build
from merging.run.models import finetuned_model, without_adapters
from merging.run.run import Run
from merging.run.scores import environment, predict_subset, unified_forward
from merging.run.stage import Stage
from merging.run.stages import (
    calibration_graphs,
    check_molecules,
    finetuned_network,
    merged,
    merged_network,
    teacher,
)
from merging.run.store import StageResult
from merging.studies.gw_smm_analysis import (
    agreement,
    correlations,
    pair_losses,
    plan_rank,
    rank_correlation,
    scores_of,
    variant_statistics,
)
from merging.studies.markdown import over_seeds
from merging.targets.metrics import batches, concordance, roc_auc
from models.errors import ConfigError
from models.experts.unified import UnifiedModel
from models.networks.hu2020 import make_backbone
from models.state_dict import sub_state

SUBSET_MOLECULES, LABELS = 1000, 100
STATISTICS_MOLECULES, FEWER_STATISTICS = 1024, 128
"""Training molecules that give BatchNorm statistics: where all pairs are measured, and where they
are drawn."""
SUBSETS: tuple[Subset, ...] = ("valid", "test")
AVERAGE = MergeConfig(method="weight_average")
VARIANT_STARTS: dict[Variant, int] = {"exact": 4, "sampled": 1, "low_rank": 1}
SIZES, DRAWN_PARTITIONS = (128, 256, 512), 6


def on_samples(run: Run, statistics: int) -> Run:
    """Return the run with smaller data sets to measure_scores on, the same for every model: HIV,
    MUV and the 617 labels of ToxCast would take most of the time.

    Validation and test subsets are cut to `SUBSET_MOLECULES`. Of a classification as many molecules
    as possible that are positive for some label are among them, but half of the places are for the
    others, if there are so many (ROC-AUC does not depend on the ratio of classes). The training
    subset, which gives BatchNorm statistics, is cut to `statistics`; all but `LABELS` labels are
    masked. The run must stay in this process: another one would load the full data.
    """
    sampled = {task: _sampled(run.dataset(task), statistics) for task in run.tasks}
    return replace(run, _datasets=sampled)


def _sampled(dataset: MoleculeDataset, most: int) -> MoleculeDataset:
    split, labels = dataset.split, torch.full_like(dataset.labels, torch.nan)
    kept = _evenly(labels.shape[1], LABELS)
    labels[:, kept] = dataset.labels[:, kept]
    fewer = replace(dataset, labels=labels)
    statistics = split.train[_evenly(len(split.train), most)]
    valid, test = (_with_positives(fewer, rows) for rows in (split.valid, split.test))
    return replace(fewer, split=Split(statistics, valid, test))


def _with_positives(dataset: MoleculeDataset, rows: Tensor) -> Tensor:
    if dataset.target == "regression":
        return rows[_evenly(len(rows), SUBSET_MOLECULES)]
    positive = (dataset.labels[rows] == 1).any(1)
    positives, others = rows[positive], rows[~positive]
    reserved = min(len(others), SUBSET_MOLECULES // 2)
    positives = positives[_evenly(len(positives), SUBSET_MOLECULES - reserved)]
    others = others[_evenly(len(others), SUBSET_MOLECULES - len(positives))]
    return torch.cat([positives, others]).sort().values


def _evenly(count: int, most: int) -> Tensor:
    return torch.linspace(0, count - 1, min(count, most)).long()


def groups_of(run: Run, size: int) -> list[Group]:
    """List all groups of `size` tasks of a run."""
    return list(itertools.combinations(run.tasks, size))


def score_stage(run: Run, small: Run, group: Group, merge: MergeConfig, task: str) -> Stage:
    """Return the stage that measures a task with its head on the merged backbone of its group, or
    on its own version where the merger makes one per task, without adapters.

    Args:
        run: the run that is merged.
        small: the run that is measured on, see `on_samples`.
        group: tasks that are merged with each other.
        merge: the merger.
        task: a task of the group.

    Returns:
        A stage whose record has the concordance by "valid" and "test".
    """
    grouped = group_run(run, group, merge, "study")
    make = partial(_make_score, grouped, small, task)
    inputs = merged(grouped), teacher(run, task)
    name = f"planning/scores/{merge.method}/{task}"
    return Stage(name, run.seed, _sampling(small, task), inputs, make)


def _make_score(grouped: Run, small: Run, task: str, _: Path) -> StageResult:
    model = without_adapters(small, merged_network(grouped, task), task)
    return _concordances(small, model, task)


def finetuned_stage(run: Run, small: Run, task: str) -> Stage:
    """Return the stage that measures a fine-tuned model with the BatchNorm statistics of its
    training: concordance by "valid" and "test"."""
    make, inputs = partial(_make_finetuned_score, small, task), (teacher(run, task),)
    return Stage(
        f"planning/scores/finetuned/{task}", run.seed, _sampling(small, task), inputs, make
    )


def _make_finetuned_score(small: Run, task: str, _: Path) -> StageResult:
    return _concordances(small, finetuned_model(small, task), task)


def _concordances(small: Run, model: UnifiedModel, task: str) -> StageResult:
    forward, record = unified_forward(small, model, task), dict[str, Any]()
    for subset in SUBSETS:
        outputs, labels = predict_subset(small, forward, task, subset)
        if small.dataset(task).target == "multilabel":
            found = roc_auc(labels, outputs).mean
        else:
            found = concordance(outputs.numpy(), labels.numpy())
        if math.isnan(found):
            expected = "expected molecules of both classes, or different values"
            raise ConfigError(f"got one label for all {subset} molecules of {task}, {expected}")
        record[subset] = round(found, 5)
    return StageResult(record=record)


def _sampling(small: Run, task: str) -> tuple[int, ...]:
    return SUBSET_MOLECULES, len(small.dataset(task).split.train), LABELS


def measured_pairs(run: Run, ways: int | None) -> list[Group]:
    """List the pairs that are merged and measured: those of `ways` random partitions of the tasks
    into pairs, in which every task occurs as often as any other; None measures all."""
    if ways is None:
        return groups_of(run, 2)
    partitions = drawn_groupings(run.tasks, _pair_sizes(run), ways, np.random.default_rng(0))
    return sorted({group for groups in partitions for group in groups if len(group) == 2})


def _pair_sizes(run: Run) -> list[int]:
    return [2] * (len(run.tasks) // 2) + [1] * (len(run.tasks) % 2)


def group_scores(run: Run, small: Run, groups: Sequence[Group], merge: MergeConfig) -> list[Stage]:
    """List the stages that measure groups."""
    return [score_stage(run, small, group, merge, task) for group in groups for task in group]


# --- distances ---


def distance_tables(run: Run, ways: int | None) -> dict[str, list[list[float]]]:
    """Measure the distances between all models by every metric, or read them from the work folder.

    Args:
        run: the run.
        ways: see `study`.

    Returns:
        (K, K) tables by name: the metrics of a plan. Without `ways` also `gw_same`, between feature
        spaces of the same molecules, and `gw_data`, between the tasks' molecules in the feature
        space of the pre-trained model, both found from one start.
    """
    stage = _distance_stage(run, ways)
    build([stage], run.store, description=f"seed {run.seed}: distances")
    return run.result(stage).record


def _distance_stage(run: Run, ways: int | None) -> Stage:
    spaces = {"gw": task_space}
    if ways is None:
        spaces |= {"gw_same": _shared_space, "gw_data": _pretrained_space}
    solver, pairs = _solver(ways), {}
    for name, space in spaces.items():
        cached = cache(partial(space, run))
        settings = solver if name == "gw" else PlanSettings(restarts=1)
        for first, second in map(sorted, groups_of(run, 2)):
            pair = name, first, second
            pairs[pair] = distance_stage(run, *pair, cached, settings)
    make = partial(_make_distances, run, solver, pairs)
    return Stage("planning/distances", run.seed, (), tuple(pairs.values()), make)


def _make_distances(
    run: Run, solver: PlanSettings, pairs: dict[tuple[str, str, str], Stage], _: Path
) -> StageResult:
    metrics: tuple[Metric, ...] = ("gw", "cka", "cosine")
    tables: dict[str, Matrix] = {
        name: model_distances(run, solver.model_copy(update={"metric": name})) for name in metrics
    }
    for name in dict.fromkeys(name for name, *_pair in pairs if name != "gw"):
        tables[name] = pair_table(run.tasks, partial(_stored_distance, run, pairs, name))
    return StageResult(record={name: table.round(6).tolist() for name, table in tables.items()})


def _stored_distance(
    run: Run, pairs: dict[tuple[str, str, str], Stage], name: str, first: str, second: str
) -> float:
    return float(run.result(pairs[name, first, second]).record["distance"])


def _shared_space(run: Run, task: str) -> Matrix:
    batches = [calibration_graphs(run, name)[0][0] for name in run.tasks]
    return distance_matrix(feature_matrix(finetuned_network(run, task), batches))


def _pretrained_space(run: Run, task: str) -> Matrix:
    initial = sub_state(run.initial_state(), "network.")
    backbone = make_backbone(initial, run.config.shape, "pre-trained weights")
    return distance_matrix(feature_matrix(backbone, calibration_graphs(run, task)[0]))


def variants(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Compute the Gromov-Wasserstein distances of all pairs by every variant of the solver: records
    of `distance_stage` by variant."""
    space = cache(partial(task_space, run))
    pairs = [(first, second) for first, second in map(sorted, groups_of(run, 2))]
    found: dict[str, list[dict[str, Any]]] = {}
    for variant, starts in VARIANT_STARTS.items():
        settings = PlanSettings(variant=variant, restarts=starts)
        stages = [distance_stage(run, "gw", *pair, space, settings) for pair in pairs]
        found[variant] = [run.result(stage).record for stage in stages]
    return found


def sizes(run: Run) -> dict[str, Any]:
    """Measure every variant of the solver on growing numbers of molecules of the first two tasks by
    name: {molecules: {variant: {"distance", "seconds"}}}, from one start."""
    inputs = tuple(teacher(run, task) for task in sorted(run.tasks)[:2])
    return run.result(Stage("planning/sizes", run.seed, SIZES, inputs, partial(_sizes, run))).record


def _sizes(run: Run, _: Path) -> StageResult:
    table: dict[str, Any] = {}
    for count in SIZES:
        first, second = (_sample_space(run, task, count) for task in sorted(run.tasks)[:2])
        table[str(count)] = {}
        for variant in VARIANT_STARTS:
            start, generator = time.process_time(), np.random.default_rng(run.seed)
            found = gromov_wasserstein(first, second, variant, 1, generator)
            table[str(count)][variant] = {
                "distance": round(found.distance, 5),
                "seconds": round(time.process_time() - start, 6),
            }
    return StageResult(record=table)


def _sample_space(run: Run, task: str, count: int) -> Matrix:
    dataset = run.dataset(task)
    rows = dataset.split.train[_evenly(len(dataset.split.train), count)]
    sample = (batch for _, batch in batches(dataset.graphs, rows, 64))
    return distance_matrix(feature_matrix(finetuned_network(run, task), sample))


# --- the whole study ---


def measure_scores(run: Run, small: Run, pairs: Sequence[Group], both: bool) -> None:
    """Measure the scores of a seed that do not depend on a plan, those of pairs merged by weight
    average only if `both`."""
    single, whole = groups_of(run, 1), [run.tasks]
    work = [finetuned_stage(run, small, task) for task in run.tasks]
    work += group_scores(run, small, single, SINGLE_MODEL)
    work += group_scores(run, small, [*single, *pairs, *whole], PUBLISHED_MERGE)
    work += group_scores(run, small, [*pairs, *whole] if both else whole, AVERAGE)
    build(work, run.store, description=f"seed {run.seed}: measuring")


def study(runs: Sequence[Run], both: Sequence[int], ways: int | None = None) -> dict[str, Any]:
    """Measure everything, and return the content of the results file.

    Args:
        runs: of one configuration, one per seed; groups of three are measured for the first only.
        both: the seeds for which pairs are merged by weight average too; if any, the first is among
            them.
        ways: see `measured_pairs`. If given, as many partitions are drawn to compare a plan with;
            the solver of a plan has one start, and it is not compared with its variants and
            controls.
    """
    solver = _solver(ways)
    seeds = [
        _seed(run, run.seed in both, (2,) if k else (2, 3), ways) for k, run in enumerate(runs)
    ]
    tables = {
        name: [np.array(seed["distances"][name]) for seed in seeds]
        for name in seeds[0]["distances"]
    }
    losses = {
        name: {
            k: np.array(seed["losses"][name], dtype=float)  # None becomes NaN.
            for k, seed in enumerate(seeds)
            if name in seed["losses"]
        }
        for name in seeds[0]["losses"]
    }
    return {
        "what": (
            "GW-SMM: which models to merge; distances between fine-tuned models against the"
            " measured loss of merging them"
        ),
        "settings": _settings(runs[0], solver, ways),
        "tasks": list(runs[0].tasks),
        "seeds": [run.seed for run in runs],
        "environment": {**environment(), "pot": version("pot")},
        "correlation": {
            metric: {
                name: correlations([table[k] for k in loss], list(loss.values()))
                for name, loss in losses.items()
            }
            for metric, table in tables.items()
        },
        "agreement": _agreements(losses),
        **(_distance_statistics(runs[0], tables) if ways is None else {}),
        "by_seed": dict(zip((str(run.seed) for run in runs), seeds, strict=True)),
    }


def _statistics(ways: int | None) -> int:
    return STATISTICS_MOLECULES if ways is None else FEWER_STATISTICS


def _solver(ways: int | None) -> PlanSettings:
    return PlanSettings() if ways is None else PlanSettings(restarts=1)


def _settings(run: Run, solver: PlanSettings, ways: int | None) -> dict[str, Any]:
    backbone = sub_state(run.initial_state(), "network.").values()
    return {
        "configuration": run.config.setting,
        "merge": PUBLISHED_MERGE.model_dump(),
        "plan": solver.model_dump(),
        "pairs": len(measured_pairs(run, ways)),
        "ways": ways,
        "molecules": {
            "distances": MOLECULES.calibration_graphs(run.config),
            "part": SUBSET_MOLECULES,
            "statistics": _statistics(ways),
            "labels": LABELS,
        },
        "drawn_ways": DRAWN_PARTITIONS,
        "backbone_bytes": sum(tensor.numel() * tensor.element_size() for tensor in backbone),
    }


def _agreements(losses: dict[str, dict[int, Matrix]]) -> dict[str, Any]:
    found = {
        f"{name}, between seeds": agreement([list(loss.values())])
        for name, loss in losses.items()
        if len(loss) > 1
    }
    subsets = zip(losses["ties_valid"].values(), losses["ties_test"].values(), strict=True)
    return {**found, "ties, valid against test": agreement(list(subsets))}


def _distance_statistics(run: Run, tables: dict[str, list[Matrix]]) -> dict[str, Any]:
    pairs = zip(tables["gw"], tables["gw_data"], strict=True)
    return {
        "data_alone": over_seeds([rank_correlation(gw, data) for gw, data in pairs]),
        "variants": variant_statistics(variants(run)),
        "sizes": sizes(run),
    }


def _seed(run: Run, both: bool, group_sizes: Sequence[int], ways: int | None) -> dict[str, Any]:
    small, tasks = on_samples(run, _statistics(ways)), run.tasks
    pairs = measured_pairs(run, ways)
    measure_scores(run, small, pairs, both)

    def scored(group: Group, merge: MergeConfig, task: str) -> dict[str, float]:
        return run.result(score_stage(run, small, group, merge, task)).record

    single = {task: scored((task,), SINGLE_MODEL, task) for task in tasks}
    losses: dict[str, Any] = {}
    for merge in (PUBLISHED_MERGE, AVERAGE) if both else (PUBLISHED_MERGE,):
        scores = scores_of(pairs, partial(_score_in, run, small, merge))
        for subset in SUBSETS:
            losses[f"{merge.method}_{subset}"] = _cells(pair_losses(tasks, scores, single, subset))
    references = {
        "finetuned": {task: run.result(finetuned_stage(run, small, task)).record for task in tasks},
        "each_alone": single,
        "each_alone_trimmed": {task: scored((task,), PUBLISHED_MERGE, task) for task in tasks},
        "one_group": {task: scored(tasks, PUBLISHED_MERGE, task) for task in tasks},
        "one_group_average": {task: scored(tasks, AVERAGE, task) for task in tasks},
    }
    return {
        "distances": distance_tables(run, ways),
        "losses": losses,
        "references": {name: _averages(by_task) for name, by_task in references.items()},
        "by_task": references,
        "plans": {str(size): _plans(run, small, size, ways) for size in group_sizes},
    }


def _cells(table: Matrix) -> list[list[float | None]]:
    return [[None if np.isnan(cell) else round(cell, 6) for cell in row] for row in table.tolist()]


def _averages(by_task: dict[str, dict[str, float]]) -> dict[str, float]:
    scores = by_task.values()
    return {subset: round(fmean(score[subset] for score in scores), 5) for subset in SUBSETS}


def _score_in(run: Run, small: Run, merge: MergeConfig, group: Group, task: str) -> Any:
    return run.result(score_stage(run, small, group, merge, task)).record


def _plans(run: Run, small: Run, size: int, ways: int | None) -> dict[str, Any]:
    """Every metric's groups of at most `size` tasks, compared with other partitions of the same
    sizes. A group of one is trimmed like the others, so that only the grouping differs."""
    found = {}
    for metric, table in distance_tables(run, ways).items():
        groups = average_linkage(run.tasks, np.array(table), size).groups
        others = _partitions(groups, run.seed, ways)
        every = sorted({group for partition in (groups, *others) for group in partition})
        work = group_scores(run, small, every, PUBLISHED_MERGE)
        build(work, run.store, description=f"seed {run.seed}: groups of {size} by {metric}")
        scores = scores_of(every, partial(_score_in, run, small, PUBLISHED_MERGE))
        found[metric] = {
            "groups": [list(group) for group in groups],
            "valid": plan_rank(groups, others, scores, "valid"),
            "test": plan_rank(groups, others, scores, "test"),
        }
    return found


def _partitions(groups: Sequence[Group], seed: int, ways: int | None) -> list[tuple[Group, ...]]:
    """All partitions into groups of the same sizes; or drawn ones, `ways` of them (pairs are then
    those of `measured_pairs`), or few where every partition would take new merges."""
    tasks = [task for group in groups for task in group]
    lengths = sorted((len(group) for group in groups), reverse=True)
    if ways is not None:
        return drawn_groupings(tasks, lengths, ways, np.random.default_rng(0))
    every = list(all_groupings(tasks, lengths))
    if lengths[0] < 3 or len(every) <= DRAWN_PARTITIONS:
        return every
    drawn = np.random.default_rng(seed).choice(len(every), DRAWN_PARTITIONS, replace=False)
    return [every[k] for k in drawn]


def run_study(
    runs: Sequence[Run], both: Sequence[int], folder: Path, ways: int | None = None
) -> dict[str, Any]:
    """Measure everything, and write `gw-smm.json` and the figures of the first run's plan into a
    folder; measurements are kept in the work folder.

    Args:
        runs, both, ways: see `study`.
        folder: gets the files.

    Returns:
        The content of the results file.

    Raises:
        ConfigError: the runs are not on molecules, a task has classes, or there is no way.
    """
    check_molecules(runs[0])
    if classes := [task for task in runs[0].tasks if runs[0].dataset(task).target == "multiclass"]:
        expected = "expected labels 0 and 1, or numbers"
        raise ConfigError(f"got tasks with classes, {', '.join(classes)}, {expected}")
    if ways is not None and ways < 1:
        raise ConfigError(f"--ways: got {ways}, expected at least 1")
    content = study(runs, both, ways)
    write_json(folder / "gw-smm.json", content)
    draw_plan(make_plan(runs[0], _solver(ways)), folder / "gw-smm")
    return content
