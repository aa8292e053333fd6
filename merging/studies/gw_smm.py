"""Does a plan predict which merges hurt? Every pair of the run's models merged and measured, beside
the distances between them.

`python -m merging.planning.study` writes `results/neighbours/gw-smm.json` and its figures; what was
measured is kept in the work folder.
"""

import argparse
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

from merging.config.base import fingerprint
from merging.data.files import write_json
from merging.data.molecule_dataset import MoleculeDataset
from merging.data.split import Split
from merging.drawing.plan import draw_plan
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
    measured,
    model_distances,
    own_space,
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
    among,
    correlations,
    gathered,
    mantel,
    pair_losses,
    variant_statistics,
)
from merging.studies.markdown import over_seeds
from merging.studies.results import environment, measure_task
from merging.training.metrics import batches
from models.networks.hu2020 import make_backbone

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
    return replace(run, _datasets={task: _sampled(run.dataset(task)) for task in run.config.tasks})


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
    return list(itertools.combinations(run.config.tasks, size))


def score(run: Run, small: Run, group: Group, merge: MergeConfig, task: str) -> dict[str, float]:
    """ROC-AUC ("valid", "test") of a task with its head on the merged backbone of its group,
    without adapters; `small` is the run on samples."""
    merged = group_run(run, group, merge, "study")

    def make() -> dict[str, float]:
        return measure_task(
            small, bare(small, merged_backbone(merged), task), task, "own", "stored"
        )

    return run.record(f"planning/scores/{merge.method}/{task}", _key(merge_key(merged), task), make)


def score_finetuned(run: Run, small: Run, task: str) -> dict[str, float]:
    """The same of the fine-tuned model as it is, with the BatchNorm statistics of its training."""
    key = _key(finetune_key(run, task), task)
    return run.record(
        f"planning/scores/finetuned/{task}",
        key,
        lambda: measure_task(small, finetuned_alone(small, task), task, "own", "stored"),
    )


def _key(origin: str, task: str) -> str:
    return fingerprint(origin, task, PART_MOLECULES, STATISTICS_MOLECULES, LABELS)


def jobs(run: Run, small: Run, sizes: Sequence[int], merge: MergeConfig) -> list[Job]:
    """The measurements of all groups of these sizes."""
    return [
        partial(score, run, small, group, merge, task)
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
    for name, space in (("gw_same", _same_molecules), ("gw_data", _pretrained_space)):
        tables[name] = np.zeros_like(tables["gw"])
        seen = cache(partial(space, run))
        for i, k in itertools.combinations(range(len(run.config.tasks)), 2):
            first, second = sorted((run.config.tasks[i], run.config.tasks[k]))
            tables[name][i, k] = tables[name][k, i] = measured(
                run, name, first, second, seen, PlanSettings(restarts=1)
            )["distance"]
    return {name: table.round(6).tolist() for name, table in tables.items()}


def _same_molecules(run: Run, task: str) -> Matrix:
    return distance_matrix(
        feature_matrix(
            finetuned_backbone(run, task),
            [calibration(run, each).batches[0] for each in run.config.tasks],
        )
    )


def _pretrained_space(run: Run, task: str) -> Matrix:
    backbone = make_backbone(
        run.pretrained(), run.config.pretrained.backbone, "pre-trained weights"
    )
    return distance_matrix(feature_matrix(backbone, calibration(run, task).batches))


def variants(run: Run) -> dict[str, list[dict[str, Any]]]:
    """What each variant finds for every pair."""
    space = cache(partial(own_space, run))
    settings = {
        variant: PlanSettings(variant=variant, restarts=starts)
        for variant, starts in VARIANT_STARTS.items()
    }
    pairs = [sorted(pair) for pair in groups_of(run, 2)]
    return {
        variant: [measured(run, "gw", first, second, space, each) for first, second in pairs]
        for variant, each in settings.items()
    }


def sizes(run: Run) -> dict[str, Any]:
    """Seconds of one start of each variant and the distance that it finds, by the number of
    molecules, for the first two tasks by name."""
    return run.record(
        "planning/sizes",
        fingerprint(*(finetune_key(run, task) for task in sorted(run.config.tasks)[:2])),
        partial(_sizes, run),
    )


def _sizes(run: Run) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for count in SIZES:
        spaces = [_first_molecules(run, task, count) for task in sorted(run.config.tasks)[:2]]
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
    return table


def _first_molecules(run: Run, task: str, count: int) -> Matrix:
    dataset = run.dataset(task)
    rows = dataset.split.train[_evenly(len(dataset.split.train), count)]
    return distance_matrix(
        feature_matrix(
            finetuned_backbone(run, task), (batch for _, batch in batches(dataset.graphs, rows, 64))
        )
    )


# --- everything together ---


def measure(run: Run, small: Run, both: bool) -> None:
    """The scores of a seed that do not depend on a plan; those of the second merger only where
    `both`."""
    tasks = run.config.tasks
    work: list[Job] = [partial(score_finetuned, run, small, task) for task in tasks]
    work += (
        jobs(run, small, [1], ALONE)
        + jobs(run, small, [1, 2, len(tasks)], PUBLISHED)
        + jobs(run, small, [len(tasks)], AVERAGE)
    )
    work += jobs(run, small, [2], AVERAGE) if both else []
    run_jobs(f"seed {run.seed}: measuring", work, 1, 1)


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
                "distances": CALIBRATION_MOLECULES,
                "part": PART_MOLECULES,
                "statistics": STATISTICS_MOLECULES,
                "labels": LABELS,
            },
            "drawn_ways": DRAWN_WAYS,
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
    measure(run, small, both)
    alone = {task: score(run, small, (task,), ALONE, task) for task in tasks}
    losses: dict[str, Any] = {}
    for merge in (PUBLISHED, AVERAGE) if both else (PUBLISHED,):
        scores = gathered(groups_of(run, 2), partial(_score_in, run, small, merge))
        losses |= {
            f"{merge.method}_{part}": pair_losses(tasks, scores, alone, part).round(6).tolist()
            for part in PARTS
        }
    references = {
        "finetuned": {task: score_finetuned(run, small, task) for task in tasks},
        "each_alone": alone,
        "each_alone_trimmed": {task: score(run, small, (task,), PUBLISHED, task) for task in tasks},
        "one_group": {task: score(run, small, tasks, PUBLISHED, task) for task in tasks},
        "one_group_average": {task: score(run, small, tasks, AVERAGE, task) for task in tasks},
    }
    return {
        "distances": distance_tables(run),
        "losses": losses,
        "references": {name: _averages(by_task) for name, by_task in references.items()},
        "plans": {str(size): _plans(run, small, size) for size in group_sizes},
    }


def _averages(by_task: dict[str, dict[str, float]]) -> dict[str, float]:
    return {part: round(fmean(each[part] for each in by_task.values()), 5) for part in PARTS}


def _score_in(
    run: Run, small: Run, merge: MergeConfig, group: Group, task: str
) -> dict[str, float]:
    return score(run, small, group, merge, task)


def _plans(run: Run, small: Run, size: int) -> dict[str, Any]:
    """Each metric's groups of at most `size` among others of these sizes. A group of one is merged
    as the others are: only the grouping differs."""
    found = {}
    for metric, table in distance_tables(run).items():
        groups = average_linkage(run.config.tasks, np.array(table), size).groups
        ways = _ways(groups, run.seed)
        scores = gathered(
            sorted({group for way in (groups, *ways) for group in way}),
            partial(_score_in, run, small, PUBLISHED),
        )
        found[metric] = {
            "groups": [list(group) for group in groups],
            **{part: among(groups, ways, scores, part) for part in PARTS},
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
