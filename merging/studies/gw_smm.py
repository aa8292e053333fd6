"""Does a plan predict which merges hurt? Every pair of the run's models merged and measured, beside
the distances between them: `gmerging study gw-smm`."""

import itertools
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
from merging.data.split import Split
from merging.drawing.plan import draw_plan
from merging.families.molecules import MOLECULES
from merging.mergers.registry import MergeConfig
from merging.planning.distances import (
    Matrix,
    Variant,
    distance_matrix,
    feature_matrix,
    gromov_wasserstein,
)
from merging.planning.grouping import Group, all_groupings, average_linkage
from merging.planning.plan import (
    ALONE,
    PUBLISHED,
    PlanSettings,
    group_run,
    make_plan,
    model_distances,
    own_space,
)
from merging.planning.plan import (
    measured as distance_stage,
)
from merging.run.models import finetuned, without_adapters
from merging.run.run import Run
from merging.run.scores import answering, environment, measured
from merging.run.stage import Stage, build
from merging.run.stages import (
    calibration_graphs,
    check_adapters,
    merged,
    merged_network,
    own_network,
    teacher,
)
from merging.run.store import StageResult
from merging.studies.gw_smm_analysis import (
    agreement,
    among,
    correlations,
    gathered,
    mantel,
    pair_losses,
    variant_statistics,
)
from merging.studies.markdown import over_seeds
from merging.training.metrics import batches
from models.networks.hu2020 import make_backbone
from models.state_dict import sub_state

PART_MOLECULES, STATISTICS_MOLECULES, LABELS = 1000, 1024, 100
PARTS = ("valid", "test")
AVERAGE = MergeConfig(method="weight_average")
VARIANT_STARTS: dict[Variant, int] = {"exact": 4, "sampled": 1, "low_rank": 1}
SIZES, DRAWN_WAYS = (128, 256, 512), 6


def on_samples(run: Run) -> Run:
    """The run with less to measure on, the same for every model: HIV, MUV and the 617 labels of
    ToxCast alone would take most of the time.

    Of the validation and test parts at most `PART_MOLECULES` each, all that are positive for some
    label among them (ROC-AUC does not depend on the ratio); of the training part, for BatchNorm
    statistics, at most `STATISTICS_MOLECULES`; of at most `LABELS` labels, the others are missing.
    Not for another process, which would read the data whole.
    """
    return replace(run, _datasets={task: _sampled(run.dataset(task)) for task in run.tasks})


def _sampled(dataset: MoleculeDataset) -> MoleculeDataset:
    split, labels = dataset.split, torch.full_like(dataset.labels, torch.nan)
    kept = _evenly(labels.shape[1], LABELS)
    labels[:, kept] = dataset.labels[:, kept]
    fewer = replace(dataset, labels=labels)
    statistics = split.train[_evenly(len(split.train), STATISTICS_MOLECULES)]
    return replace(
        fewer,
        split=Split(
            statistics, _with_positives(fewer, split.valid), _with_positives(fewer, split.test)
        ),
    )


def _with_positives(dataset: MoleculeDataset, rows: Tensor) -> Tensor:
    positive = (dataset.labels[rows] == 1).any(1)
    others = rows[~positive]
    return (
        torch.cat(
            [
                rows[positive],
                others[_evenly(len(others), max(0, PART_MOLECULES - int(positive.sum())))],
            ]
        )
        .sort()
        .values
    )


def _evenly(count: int, most: int) -> Tensor:
    return torch.linspace(0, count - 1, min(count, most)).long()


def groups_of(run: Run, size: int) -> list[Group]:
    """All groups of that size."""
    return list(itertools.combinations(run.tasks, size))


def score(run: Run, small: Run, group: Group, merge: MergeConfig, task: str) -> Stage:
    """ROC-AUC ("valid", "test") of a task with its head on the merged backbone of its group,
    without adapters; `small` is the run on samples."""
    grouped = group_run(run, group, merge, "study")
    make = partial(_make_score, grouped, small, task)
    inputs = merged(grouped), teacher(run, task)
    name = f"planning/scores/{merge.method}/{task}"
    return Stage(name, run.seed, _sampling(), inputs, make)


def _make_score(grouped: Run, small: Run, task: str, _: Path) -> StageResult:
    model = without_adapters(small, merged_network(grouped), task)
    return _areas(measured(small, answering(small, model, task), task))


def score_finetuned(run: Run, small: Run, task: str) -> Stage:
    """The same of the fine-tuned model as it is, with the BatchNorm statistics of its training."""
    make, inputs = partial(_make_finetuned, small, task), (teacher(run, task),)
    return Stage(f"planning/scores/finetuned/{task}", run.seed, _sampling(), inputs, make)


def _make_finetuned(small: Run, task: str, _: Path) -> StageResult:
    return _areas(measured(small, answering(small, finetuned(small, task), task), task))


def _areas(found: dict[str, dict[str, float]]) -> StageResult:
    return StageResult(record={subset: values["roc_auc"] for subset, values in found.items()})


def _sampling() -> tuple[int, ...]:
    return PART_MOLECULES, STATISTICS_MOLECULES, LABELS


def group_scores(run: Run, small: Run, sizes: Sequence[int], merge: MergeConfig) -> list[Stage]:
    """The measurements of all groups of these sizes."""
    return [
        score(run, small, group, merge, task)
        for size in sizes
        for group in groups_of(run, size)
        for task in group
    ]


# --- distances ---


def distance_tables(run: Run) -> dict[str, list[list[float]]]:
    """By metric the distances of all models, measured now or read back: those that a plan can be
    made from, and two that tell models from molecules.

    `gw_same` compares feature spaces of the same molecules, `gw_data` the molecules of two tasks in
    the eyes of the one pre-trained model.
    """
    return run.result(_distance_stage(run)).record


def _distance_stage(run: Run) -> Stage:
    spaces = {"gw": own_space, "gw_same": _same_molecules, "gw_data": _pretrained_space}
    pairs = {}
    for name, space in spaces.items():
        seen = cache(partial(space, run))
        settings = PlanSettings() if name == "gw" else PlanSettings(restarts=1)
        for first, second in map(sorted, groups_of(run, 2)):
            pair = name, first, second
            pairs[pair] = distance_stage(run, *pair, seen, settings)
    make = partial(_make_distances, run, pairs)
    return Stage("planning/distances", run.seed, (), tuple(pairs.values()), make)


def _make_distances(run: Run, pairs: dict[tuple[str, str, str], Stage], _: Path) -> StageResult:
    metrics = ("gw", "cka", "cosine")
    tables = {name: model_distances(run, PlanSettings(metric=name)) for name in metrics}
    at = {task: k for k, task in enumerate(run.tasks)}
    for (name, first, second), stage in pairs.items():
        if name != "gw":
            table = tables.setdefault(name, np.zeros_like(tables["gw"]))
            distance = run.result(stage).record["distance"]
            table[at[first], at[second]] = table[at[second], at[first]] = distance
    return StageResult(record={name: table.round(6).tolist() for name, table in tables.items()})


def _same_molecules(run: Run, task: str) -> Matrix:
    batches = [calibration_graphs(run, name)[0][0] for name in run.tasks]
    return distance_matrix(feature_matrix(own_network(run, task), batches))


def _pretrained_space(run: Run, task: str) -> Matrix:
    initial = sub_state(run.initial(), "network.")
    backbone = make_backbone(initial, run.config.shape, "pre-trained weights")
    return distance_matrix(feature_matrix(backbone, calibration_graphs(run, task)[0]))


def variants(run: Run) -> dict[str, list[dict[str, Any]]]:
    """What each variant finds for every pair."""
    space = cache(partial(own_space, run))
    settings = {
        variant: PlanSettings(variant=variant, restarts=starts)
        for variant, starts in VARIANT_STARTS.items()
    }
    pairs = [sorted(pair) for pair in groups_of(run, 2)]
    return {
        variant: [
            run.result(distance_stage(run, "gw", first, second, space, how)).record
            for first, second in pairs
        ]
        for variant, how in settings.items()
    }


def sizes(run: Run) -> dict[str, Any]:
    """Seconds of one start of each variant and the distance that it finds, by the number of
    molecules, for the first two tasks by name."""
    inputs = tuple(teacher(run, task) for task in sorted(run.tasks)[:2])
    return run.result(Stage("planning/sizes", run.seed, SIZES, inputs, partial(_sizes, run))).record


def _sizes(run: Run, _: Path) -> StageResult:
    table: dict[str, Any] = {}
    for count in SIZES:
        spaces = [_first_molecules(run, task, count) for task in sorted(run.tasks)[:2]]
        table[str(count)] = {}
        for variant in VARIANT_STARTS:
            start = time.process_time()
            found = gromov_wasserstein(
                spaces[0], spaces[1], variant, 1, np.random.default_rng(run.seed)
            )
            table[str(count)][variant] = {
                "distance": round(found.distance, 5),
                "seconds": round(time.process_time() - start, 6),
            }
    return StageResult(record=table)


def _first_molecules(run: Run, task: str, count: int) -> Matrix:
    dataset = run.dataset(task)
    rows = dataset.split.train[_evenly(len(dataset.split.train), count)]
    found = (batch for _, batch in batches(dataset.graphs, rows, 64))
    return distance_matrix(feature_matrix(own_network(run, task), found))


# --- everything together ---


def measure(run: Run, small: Run, both: bool) -> None:
    """The scores of a seed that do not depend on a plan; those of the second merger only where
    `both`."""
    tasks = run.tasks
    work = [score_finetuned(run, small, task) for task in tasks]
    work += group_scores(run, small, [1], ALONE)
    work += group_scores(run, small, [1, 2, len(tasks)], PUBLISHED)
    work += group_scores(run, small, [2, len(tasks)] if both else [len(tasks)], AVERAGE)
    build(work, run.store, description=f"seed {run.seed}: measuring")


def study(runs: Sequence[Run], both: Sequence[int]) -> dict[str, Any]:
    """The content of the results file.

    Args:
        runs: of one configuration, one for each seed; groups of three are measured for the first.
        both: the seeds, the first among them if any, for which pairs are merged by weight average
            too.
    """
    seeds = [_seed(run, run.seed in both, (2,) if k else (2, 3)) for k, run in enumerate(runs)]
    tables = {
        name: [np.array(seed["distances"][name]) for seed in seeds]
        for name in seeds[0]["distances"]
    }
    losses = {
        name: {
            k: np.array(seed["losses"][name])
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
        "settings": {
            "configuration": runs[0].config.setting,
            "merge": PUBLISHED.model_dump(),
            "plan": PlanSettings().model_dump(),
            "molecules": {
                "distances": MOLECULES.calibration_graphs(runs[0].config),
                "part": PART_MOLECULES,
                "statistics": STATISTICS_MOLECULES,
                "labels": LABELS,
            },
            "drawn_ways": DRAWN_WAYS,
        },
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
        "agreement": {
            **{
                f"{name}, between seeds": agreement([list(loss.values())])
                for name, loss in losses.items()
                if len(loss) > 1
            },
            "ties, valid against test": agreement(
                list(zip(losses["ties_valid"].values(), losses["ties_test"].values(), strict=True))
            ),
        },
        "data_alone": over_seeds(
            [
                mantel(gw, data)["rho"]
                for gw, data in zip(tables["gw"], tables["gw_data"], strict=True)
            ]
        ),
        "variants": variant_statistics(variants(runs[0])),
        "sizes": sizes(runs[0]),
        "by_seed": dict(zip((str(run.seed) for run in runs), seeds, strict=True)),
    }


def _seed(run: Run, both: bool, group_sizes: Sequence[int]) -> dict[str, Any]:
    small, tasks = on_samples(run), run.tasks
    measure(run, small, both)

    def scored(group: Group, merge: MergeConfig, task: str) -> dict[str, float]:
        return run.result(score(run, small, group, merge, task)).record

    alone = {task: scored((task,), ALONE, task) for task in tasks}
    losses: dict[str, Any] = {}
    for merge in (PUBLISHED, AVERAGE) if both else (PUBLISHED,):
        pairs = gathered(groups_of(run, 2), partial(_score_in, run, small, merge))
        for subset in PARTS:
            table = pair_losses(tasks, pairs, alone, subset)
            losses[f"{merge.method}_{subset}"] = table.round(6).tolist()
    references = {
        "finetuned": {task: run.result(score_finetuned(run, small, task)).record for task in tasks},
        "each_alone": alone,
        "each_alone_trimmed": {task: scored((task,), PUBLISHED, task) for task in tasks},
        "one_group": {task: scored(tasks, PUBLISHED, task) for task in tasks},
        "one_group_average": {task: scored(tasks, AVERAGE, task) for task in tasks},
    }
    return {
        "distances": distance_tables(run),
        "losses": losses,
        "references": {name: _averages(by_task) for name, by_task in references.items()},
        "plans": {str(size): _plans(run, small, size) for size in group_sizes},
    }


def _averages(by_task: dict[str, dict[str, float]]) -> dict[str, float]:
    return {
        subset: round(fmean(scores[subset] for scores in by_task.values()), 5) for subset in PARTS
    }


def _score_in(run: Run, small: Run, merge: MergeConfig, group: Group, task: str) -> Any:
    return run.result(score(run, small, group, merge, task)).record


def _plans(run: Run, small: Run, size: int) -> dict[str, Any]:
    """Each metric's groups of at most `size` among others of these sizes. A group of one is merged
    as the others are: only the grouping differs."""
    found = {}
    for metric, table in distance_tables(run).items():
        groups = average_linkage(run.tasks, np.array(table), size).groups
        ways = _ways(groups, run.seed)
        scores = gathered(
            sorted({group for way in (groups, *ways) for group in way}),
            partial(_score_in, run, small, PUBLISHED),
        )
        found[metric] = {
            "groups": [list(group) for group in groups],
            **{subset: among(groups, ways, scores, subset) for subset in PARTS},
        }
    return found


def _ways(groups: Sequence[Group], seed: int) -> list[tuple[Group, ...]]:
    """All groups of the same sizes, or some that are drawn where each would cost new merges."""
    every = list(
        all_groupings(
            [task for group in groups for task in group], [len(group) for group in groups]
        )
    )
    if max(map(len, groups)) < 3 or len(every) <= DRAWN_WAYS:
        return every
    return [
        every[k] for k in np.random.default_rng(seed).choice(len(every), DRAWN_WAYS, replace=False)
    ]


def run_study(runs: Sequence[Run], both: Sequence[int], folder: Path) -> dict[str, Any]:
    """Measure, and write `gw-smm.json` and the plan's figures into a folder; what was measured is
    kept in the work folder. See `study`."""
    check_adapters(runs[0])
    content = study(runs, both)
    write_json(folder / "gw-smm.json", content)
    draw_plan(make_plan(runs[0], PlanSettings()), folder / "gw-smm")
    return content
