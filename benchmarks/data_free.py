"""Test and validation scores of mergers that use no data and train nothing, on the tasks of a
setting: averages of weights, EMR, `residual` by rank, TSV-Merge, Iso-C and WUDI-Merging.

    python -m benchmarks.data_free --seeds 0 1 2
    python -m benchmarks.data_free --config admet_short.yaml --seeds 1 --samples

Fine-tuned models are those of `gmerging finetune`; missing ones are trained (hours). Every merger
is tried with several options; the table has the one with the best validation score. Writes
`results/<setting>/data_free.json` after every seed.
"""

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.common import parser, run_of
from merging.data.files import read_json, write_json
from merging.mergers.registry import MergeConfig
from merging.mergers.residual import numbers_of
from merging.run.build import build
from merging.run.run import Run
from merging.run.scores import Method, finetuned_method, merger_method, recovery
from merging.studies.gw_smm import FEWER_STATISTICS, finetuned_stage, on_samples, score_stage
from merging.studies.markdown import METRIC_NAMES, markdown_table

RANKS = (10, 30, 54, 100)
METRICS = METRIC_NAMES | {"concordance": "concordance"}
SCALINGS = (0.03, 0.07, 0.15, 0.3, 0.5, 1.0)
"""Factors of the merged task vector; the best one falls as the number of tasks grows."""
ROWS = {
    "weight_average": MergeConfig(method="weight_average"),
    "emr": MergeConfig(method="emr"),
    **{
        f"residual, rank {rank}": MergeConfig(method="residual", options={"rank": rank})
        for rank in RANKS
    },
    **{
        f"{method}, scaling {scaling}": MergeConfig(method=method, options={"scaling": scaling})
        for method in ("task_arithmetic", "ties", "tsv_merge", "iso_c")
        for scaling in SCALINGS
    },
    **{
        f"wudi, learning rate {rate}": MergeConfig(method="wudi", options={"learning_rate": rate})
        for rate in (1e-5, 1e-4, 1e-3)
    },
    "wudi, closed form": MergeConfig(method="wudi", options={"solver": "closed_form"}),
}


def methods(run: Run) -> dict[str, Method]:
    """The references and the mergers, by name."""
    rows = {name: merger_method(run, config) for name, config in ROWS.items()}
    return {"finetuned": finetuned_method(run), **rows}


def measure(run: Run) -> dict[str, Any]:
    """Measure a seed: scores by method and task, and recovery on the test part."""
    rows = methods(run)
    stages = [stage for row in rows.values() for stage in row.stages]
    build(stages, run.store, description="scores")
    return with_recovery({name: row.task_scores()["stored"] for name, row in rows.items()})


def measure_samples(run: Run) -> dict[str, Any]:
    """The same on the samples, and by the concordances, of `gmerging study gw-smm`."""
    small = on_samples(run, FEWER_STATISTICS)
    rows = {"finetuned": [finetuned_stage(run, small, task) for task in run.tasks]}
    for name, config in ROWS.items():
        rows[name] = [score_stage(run, small, run.tasks, config, task) for task in run.tasks]
    build([stage for row in rows.values() for stage in row], run.store, description="scores")
    found: dict[str, Any] = {}
    for name, row in rows.items():
        records = [run.result(stage).record for stage in row]
        tests = [record["test"] for record in records]
        found[name] = {
            "concordance": dict(zip(run.tasks, tests, strict=True)),
            "average": round(mean(tests), 5),
            "valid_average": round(mean(record["valid"] for record in records), 5),
        }
    return with_recovery(found)


def with_recovery(found: dict[str, Any]) -> dict[str, Any]:
    """Add to every method the recovery of its average."""
    best, worst = (found[name]["average"] for name in ("finetuned", "weight_average"))
    for scores in found.values():
        scores["recovery"] = recovery(scores["average"], worst, best)
    return found


def chosen(scores: Mapping[str, Any]) -> list[str]:
    """Return, of the options of every merger, the name with the best validation average."""
    best: dict[str, str] = {}
    for name in scores:
        method = name.split(",")[0]
        if method == "residual":  # a rank is a size that the user affords, nothing to choose
            method = name
        kept = best.setdefault(method, name)
        if scores[name]["valid_average"] > scores[kept]["valid_average"]:
            best[method] = name
    return list(best.values())


def table(scores: Mapping[str, Any]) -> str:
    """Return one seed's test averages by metric and the recovery of the average, as Markdown."""
    metrics = [name for name in METRICS if name in scores["finetuned"]]
    rows = []
    for name in chosen(scores):
        averages = [f"{mean(scores[name][metric].values()):.3f}" for metric in metrics]
        recovered = scores[name]["recovery"]  # None where averaging loses nothing
        rows.append([name, *averages, "" if recovered is None else f"{recovered:.2f}"])
    return markdown_table(["merger", *(METRICS[name] for name in metrics), "recovery"], rows)


def main() -> None:
    """Measure the seeds, print their tables, and write."""
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    about = "measure on at most 1,000 molecules of a task, as `gmerging study gw-smm` does"
    options.add_argument("--samples", action="store_true", help=about)
    arguments = options.parse_args()
    for seed in arguments.seeds:
        arguments.seed = seed
        run = run_of(arguments)
        path = Path("results") / run.config.setting / "data_free.json"
        content: dict[str, Any] = read_json(path) if path.is_file() else {"seeds": {}}
        shapes = [value.shape for value in run.initial_state().values()]
        content["numbers_of_a_task"] = {
            str(rank): sum(numbers_of(shape, rank) for shape in shapes) for rank in RANKS
        }
        content["seeds"][str(seed)] = found = (
            measure_samples(run) if arguments.samples else measure(run)
        )
        write_json(path, content)
        print(f"seed {seed}\n{table(found)}", flush=True)


if __name__ == "__main__":
    main()
