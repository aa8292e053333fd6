"""The study of GW-SMM: the measured loss of merging every pair of a run's models, against the
distances that a plan is made from.

`python -m merging.studies.gw_smm` writes `results/neighbours/gw-smm.json` and its figures;
measurements are kept in the work folder.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from merging.config.base import fingerprint
from merging.data.files import write_json
from merging.data.molecule_dataset import MoleculeDataset
from merging.data.split import Split
from merging.drawing.plan import draw_plan
from merging.mergers.registry import MergeConfig
from merging.planning.distances import (
    Matrix,
    PairDistance,
    Variant,
    distance_matrix,
    feature_matrix,
    gromov_wasserstein,
    pair_table,
)
from merging.planning.grouping import Group, all_groupings, average_linkage
from merging.planning.plan import (
    PUBLISHED_MERGE,
    SINGLE_MODEL,
    PlanSettings,
    group_run,
    make_plan,
    model_distances,
    space_distance,
    task_space,
)
from merging.run.config import load_config
from merging.run.jobs import Job, run_jobs
from merging.run.run import Run
from merging.run.stages import (
    CALIBRATION_MOLECULES,
    bare,
    calibration,
    finetune_key,
    finetuned_alone,
    finetuned_backbone,
    merge_key,
    merged_backbone,
)
from merging.studies.gw_smm_analysis import (
    agreement,
    correlations,
    mantel,
    pair_losses,
    plan_rank,
    scores_of,
    variant_statistics,
)
from merging.studies.markdown import over_seeds
from merging.studies.results import environment, measure_task
from merging.training.metrics import batches
from models.networks.hu2020 import make_backbone

SUBSET_MOLECULES, STATISTICS_MOLECULES, LABELS = 1000, 1024, 100
SUBSETS = ("valid", "test")
AVERAGE = MergeConfig(method="weight_average")
VARIANT_STARTS: dict[Variant, int] = {"exact": 4, "sampled": 1, "low_rank": 1}
SIZES, DRAWN_PARTITIONS = (128, 256, 512), 6


def on_samples(run: Run) -> Run:
    """Return the run with smaller data sets to measure on, the same for every model: HIV, MUV and
    the 617 labels of ToxCast would take most of the time.

    Validation and test subsets are cut to `SUBSET_MOLECULES`, keeping every molecule that is
    positive for some label (ROC-AUC does not depend on the ratio of classes); the training subset,
    which gives BatchNorm statistics, to `STATISTICS_MOLECULES`; all but `LABELS` labels are masked.
    The run must stay in this process: another one would load the full data.
    """
    return replace(run, _datasets={task: _sampled(run.dataset(task)) for task in run.config.tasks})


def _sampled(dataset: MoleculeDataset) -> MoleculeDataset:
    split, labels = dataset.split, torch.full_like(dataset.labels, torch.nan)
    kept = _evenly(labels.shape[1], LABELS)
    labels[:, kept] = dataset.labels[:, kept]
    fewer = replace(dataset, labels=labels)
    statistics = split.train[_evenly(len(split.train), STATISTICS_MOLECULES)]
    valid, test = (_with_positives(fewer, rows) for rows in (split.valid, split.test))
    return replace(fewer, split=Split(statistics, valid, test))


def _with_positives(dataset: MoleculeDataset, rows: Tensor) -> Tensor:
    positive = (dataset.labels[rows] == 1).any(1)
    others = rows[~positive]
    drawn = _evenly(len(others), max(0, SUBSET_MOLECULES - int(positive.sum())))
    return torch.cat([rows[positive], others[drawn]]).sort().values


def _evenly(count: int, most: int) -> Tensor:
    return torch.linspace(0, count - 1, min(count, most)).long()


def groups_of(run: Run, size: int) -> list[Group]:
    """List all groups of `size` tasks of a run."""
    return list(itertools.combinations(run.config.tasks, size))


def score_group(
    run: Run, small: Run, group: Group, merge: MergeConfig, task: str
) -> dict[str, float]:
    """Measure a task with its head on the merged backbone of its group, without adapters, or read
    the measurement from the work folder.

    Args:
        run: the run that is merged.
        small: the run that is measured on, see `on_samples`.
        group: tasks that are merged with each other.
        merge: the merger.
        task: a task of the group.

    Returns:
        ROC-AUC by "valid" and "test".
    """
    merged = group_run(run, group, merge, "study")

    def make() -> dict[str, float]:
        return measure_task(
            small, bare(small, merged_backbone(merged), task), task, "own", "stored"
        )

    return run.record(f"planning/scores/{merge.method}/{task}", _key(merge_key(merged), task), make)


def score_finetuned(run: Run, small: Run, task: str) -> dict[str, float]:
    """Measure a fine-tuned model with the BatchNorm statistics of its training: ROC-AUC by "valid"
    and "test"."""
    key = _key(finetune_key(run, task), task)
    return run.record(
        f"planning/scores/finetuned/{task}",
        key,
        lambda: measure_task(small, finetuned_alone(small, task), task, "own", "stored"),
    )


def _key(origin: str, task: str) -> str:
    return fingerprint(origin, task, SUBSET_MOLECULES, STATISTICS_MOLECULES, LABELS)


def jobs(run: Run, small: Run, sizes: Sequence[int], merge: MergeConfig) -> list[Job]:
    """List the measurements of all groups of these sizes, as jobs."""
    return [
        partial(score_group, run, small, group, merge, task)
        for size in sizes
        for group in groups_of(run, size)
        for task in group
    ]


# --- distances ---


def distance_tables(run: Run) -> dict[str, list[list[float]]]:
    """Measure the distances between all models by every metric, or read them from the work folder.

    Returns:
        (K, K) tables by name: the metrics of a plan; `gw_same`, between feature spaces of the same
        molecules; and `gw_data`, between the tasks' molecules in the feature space of the
        pre-trained model.
    """
    return run.record(
        "planning/distances",
        fingerprint(*(finetune_key(run, task) for task in run.config.tasks)),
        partial(_distance_tables, run),
    )


def _distance_tables(run: Run) -> dict[str, list[list[float]]]:
    tables = {
        metric: model_distances(run, PlanSettings.model_validate({"metric": metric}))
        for metric in ("gw", "cka", "cosine")
    }
    tables["gw_same"] = pair_table(run.config.tasks, _distances_of(run, "gw_same", _shared_space))
    tables["gw_data"] = pair_table(
        run.config.tasks, _distances_of(run, "gw_data", _pretrained_space)
    )
    return {name: table.round(6).tolist() for name, table in tables.items()}


def _distances_of(run: Run, name: str, space: Callable[[Run, str], Matrix]) -> PairDistance:
    cached = cache(partial(space, run))
    return lambda first, second: float(
        space_distance(run, name, first, second, cached, PlanSettings(restarts=1))["distance"]
    )


def _shared_space(run: Run, task: str) -> Matrix:
    batches = [calibration(run, name).batches[0] for name in run.config.tasks]
    return distance_matrix(feature_matrix(finetuned_backbone(run, task), batches))


def _pretrained_space(run: Run, task: str) -> Matrix:
    backbone = make_backbone(
        run.pretrained(), run.config.pretrained.backbone, "pre-trained weights"
    )
    return distance_matrix(feature_matrix(backbone, calibration(run, task).batches))


def variants(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Compute the Gromov-Wasserstein distances of all pairs by every variant of the solver: records
    of `space_distance` by variant."""
    space = cache(partial(task_space, run))
    pairs = [sorted(pair) for pair in groups_of(run, 2)]
    found: dict[str, list[dict[str, Any]]] = {}
    for variant, starts in VARIANT_STARTS.items():
        settings = PlanSettings(variant=variant, restarts=starts)
        found[variant] = [
            space_distance(run, "gw", first, second, space, settings) for first, second in pairs
        ]
    return found


def sizes(run: Run) -> dict[str, Any]:
    """Measure every variant of the solver on growing numbers of molecules of the first two tasks by
    name: {molecules: {variant: {"distance", "seconds"}}}, from one start."""
    return run.record(
        "planning/sizes",
        fingerprint(*(finetune_key(run, task) for task in sorted(run.config.tasks)[:2])),
        partial(_sizes, run),
    )


def _sizes(run: Run) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for count in SIZES:
        first, second = (_sample_space(run, task, count) for task in sorted(run.config.tasks)[:2])
        table[str(count)] = {}
        for variant in VARIANT_STARTS:
            start, generator = time.process_time(), np.random.default_rng(run.seed)
            found = gromov_wasserstein(first, second, variant, 1, generator)
            table[str(count)][variant] = {
                "distance": round(found.distance, 5),
                "seconds": round(time.process_time() - start, 6),
            }
    return table


def _sample_space(run: Run, task: str, count: int) -> Matrix:
    dataset = run.dataset(task)
    rows = dataset.split.train[_evenly(len(dataset.split.train), count)]
    sample = (batch for _, batch in batches(dataset.graphs, rows, 64))
    return distance_matrix(feature_matrix(finetuned_backbone(run, task), sample))


# --- the whole study ---


def measure_scores(run: Run, small: Run, both: bool) -> None:
    """Measure the scores of a seed that do not depend on a plan, those of pairs merged by weight
    average only if `both`."""
    tasks = run.config.tasks
    work: list[Job] = [partial(score_finetuned, run, small, task) for task in tasks]
    work += (
        jobs(run, small, [1], SINGLE_MODEL)
        + jobs(run, small, [1, 2, len(tasks)], PUBLISHED_MERGE)
        + jobs(run, small, [len(tasks)], AVERAGE)
    )
    work += jobs(run, small, [2], AVERAGE) if both else []
    run_jobs(f"seed {run.seed}: measuring", work, 1, 1)


def study(runs: Sequence[Run], both: Sequence[int]) -> dict[str, Any]:
    """Measure everything, and return the content of the results file.

    Args:
        runs: of one configuration, one per seed; groups of three are measured for the first only.
        both: the seeds for which pairs are merged by weight average too; if any, the first is among
            them.
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
            "merge": PUBLISHED_MERGE.model_dump(),
            "plan": PlanSettings().model_dump(),
            "molecules": {
                "distances": CALIBRATION_MOLECULES,
                "part": SUBSET_MOLECULES,
                "statistics": STATISTICS_MOLECULES,
                "labels": LABELS,
            },
            "drawn_ways": DRAWN_PARTITIONS,
        },
        "tasks": list(runs[0].config.tasks),
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
    small, tasks = on_samples(run), run.config.tasks
    measure_scores(run, small, both)

    def scored(group: Group, merge: MergeConfig, task: str) -> dict[str, float]:
        return score_group(run, small, group, merge, task)

    single = {task: scored((task,), SINGLE_MODEL, task) for task in tasks}
    losses: dict[str, Any] = {}
    for merge in (PUBLISHED_MERGE, AVERAGE) if both else (PUBLISHED_MERGE,):
        scores = scores_of(groups_of(run, 2), partial(_score_in, run, small, merge))
        losses |= {
            f"{merge.method}_{subset}": pair_losses(tasks, scores, single, subset).round(6).tolist()
            for subset in SUBSETS
        }
    references = {
        "finetuned": {task: score_finetuned(run, small, task) for task in tasks},
        "each_alone": single,
        "each_alone_trimmed": {task: scored((task,), PUBLISHED_MERGE, task) for task in tasks},
        "one_group": {task: scored(tasks, PUBLISHED_MERGE, task) for task in tasks},
        "one_group_average": {task: scored(tasks, AVERAGE, task) for task in tasks},
    }
    return {
        "distances": distance_tables(run),
        "losses": losses,
        "references": {name: _averages(by_task) for name, by_task in references.items()},
        "plans": {str(size): _plans(run, small, size) for size in group_sizes},
    }


def _averages(by_task: dict[str, dict[str, float]]) -> dict[str, float]:
    scores = by_task.values()
    return {subset: round(fmean(score[subset] for score in scores), 5) for subset in SUBSETS}


def _score_in(
    run: Run, small: Run, merge: MergeConfig, group: Group, task: str
) -> dict[str, float]:
    return score_group(run, small, group, merge, task)


def _plans(run: Run, small: Run, size: int) -> dict[str, Any]:
    """Every metric's groups of at most `size` tasks, compared with other partitions of the same
    sizes. A group of one is trimmed like the others, so that only the grouping differs."""
    found = {}
    for metric, table in distance_tables(run).items():
        groups = average_linkage(run.config.tasks, np.array(table), size).groups
        others = _partitions(groups, run.seed)
        scores = scores_of(
            sorted({group for partition in (groups, *others) for group in partition}),
            partial(_score_in, run, small, PUBLISHED_MERGE),
        )
        found[metric] = {
            "groups": [list(group) for group in groups],
            **{subset: plan_rank(groups, others, scores, subset) for subset in SUBSETS},
        }
    return found


def _partitions(groups: Sequence[Group], seed: int) -> list[tuple[Group, ...]]:
    """All partitions into groups of the same sizes, or a few drawn ones where every partition would
    take new merges."""
    tasks = [task for group in groups for task in group]
    every = list(all_groupings(tasks, [len(group) for group in groups]))
    if max(map(len, groups)) < 3 or len(every) <= DRAWN_PARTITIONS:
        return every
    drawn = np.random.default_rng(seed).choice(len(every), DRAWN_PARTITIONS, replace=False)
    return [every[k] for k in drawn]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=Path("gcn_supervised_contextpred.yaml"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--both",
        type=int,
        nargs="*",
        default=[],
        help="seeds for which pairs are merged by weight average too",
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("work"))
    parser.add_argument("--results", type=Path, default=Path("results/neighbours"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(arguments.config)
    runs = [
        Run(config, seed, arguments.data, arguments.work, torch.device("cpu"))
        for seed in arguments.seeds
    ]
    write_json(arguments.results / "gw-smm.json", study(runs, arguments.both))
    draw_plan(make_plan(runs[0], PlanSettings()), arguments.results / "gw-smm")


if __name__ == "__main__":
    main()
