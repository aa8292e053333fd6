"""The comparison as files: `seed<N>.json`, `summary.json`, `ablations.json`, a Markdown table.
`merging.drawing.figures` draws from these."""

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from merging.data.files import read_seeds, write_json
from merging.data.molecule_dataset import said_labels
from merging.mergers.registry import merger_spec
from merging.run.jobs import Job
from merging.run.run import Run
from merging.run.stages import finetuned, merged, trained_adapters
from merging.studies.markdown import (
    average_cell,
    markdown_table,
    metric_cell,
    standard_deviation,
    task_column,
)
from merging.studies.results import (
    accounting,
    by_task,
    environment,
    expert_weights,
    recovery,
    swap_matrix,
)
from merging.studies.rows import (
    Row,
    ablation_rows,
    adapter_jobs,
    finetuning_jobs,
    measuring_jobs,
    merger_candidates,
    merging_jobs,
    multitask_jobs,
    swap_jobs,
    table_rows,
)

RunJobs = Callable[[str, list[Job]], None]
"""Does independent jobs, maybe several at a time; the text says what they are."""


def compare(runs: list[Run], folder: Path, run_jobs: RunJobs) -> dict[str, Any]:
    """Measure every method in every run, and write the setting's results.

    Args:
        runs: one for each seed of one setting.
        folder: below it `<setting>/seed<N>.json`, `<setting>/summary.json` and `<setting>/table.md`
            are written; other seeds that lie there already are part of the summary.
        run_jobs: how work is done.

    Returns:
        The summary, see `summarise`.

    Raises:
        ConfigError: a merger that cannot merge a task of this target; before anything is trained.
    """
    for method in runs[0].config.compare.mergers:
        merger_spec(method).check_targets(runs[0].config.targets)
    run_jobs("fine-tuning", [*finetuning_jobs(runs), *multitask_jobs(runs)])
    candidates = [row for run in runs for row in merger_candidates(run)]
    run_jobs("merging", merging_jobs([*runs, *(row.run for row in candidates)]))
    run_jobs("measuring candidates", measuring_jobs(candidates))
    rows = {run.seed: table_rows(run) for run in runs}
    everything = [row for each in rows.values() for row in each]
    run_jobs("training adapters", adapter_jobs(everything))
    run_jobs("measuring", [*measuring_jobs(everything), *swap_jobs(runs)])
    target = folder / runs[0].config.setting
    for run in runs:
        write_json(target / f"seed{run.seed}.json", seed_results(run, rows[run.seed]))
    summary = summarise(read_seeds(target))
    write_json(target / "summary.json", summary)
    (target / "table.md").write_text(summary_table(summary) + "\n")
    return summary


def ablate(run: Run, folder: Path, run_jobs: RunJobs) -> dict[str, Any]:
    """Measure the ablations and sweeps of a configuration with one seed, and write
    `<setting>/ablations.json`.

    Returns:
        {"setting", "seed", "base", "tasks", "groups": {group: {variant: {"changes", "stored":
        {...}, "batch": {...}}}}}.
    """
    run_jobs("fine-tuning", finetuning_jobs([run]))
    groups = ablation_rows(run)
    rows = [row for each in groups.values() for row in each]
    run_jobs("merging", merging_jobs([row.run for row in rows]))
    run_jobs("training adapters", adapter_jobs(rows))
    run_jobs("measuring", measuring_jobs(rows))
    content = {
        "setting": run.config.setting,
        "seed": run.seed,
        "base": run.config.compare.ablation_base,
        "tasks": run.config.compare.ablation_tasks or run.config.tasks,
        "groups": {
            group: {row.title: row.over_tasks() for row in each} for group, each in groups.items()
        },
        "environment": environment(),
    }
    write_json(folder / run.config.setting / "ablations.json", content)
    return content


def seed_results(run: Run, rows: list[Row]) -> dict[str, Any]:
    """All results of one seed.

    Returns:
        {"setting", "seed", "methods": {name: {"title", "merge", "stored" | "batch": {...},
        "recovery"}}, "swap_matrix", "expert_weights", "accounting", ...} with scores as
        `Row.over_tasks` gives them, in [0, 1]; only some methods have "batch".
    """
    methods: dict[str, Any] = {
        row.name: {
            "title": row.title,
            "merge": row.run.config.merge.model_dump(),
            **row.over_tasks(),
        }
        for row in rows
    }
    for name, method in methods.items():
        method["recovery"] = _recovery([methods], name)
    return {
        "setting": run.config.setting,
        "seed": run.seed,
        "methods": methods,
        "merge": merged(run).record,
        "router": run.config.router.model_dump(mode="json"),
        "finetuning": {task: finetuned(run, task).record for task in run.config.tasks},
        "alignment": {task: trained_adapters(run, task).record for task in run.config.tasks},
        "swap_matrix": swap_matrix(run),
        "expert_weights": expert_weights(run),
        "accounting": accounting(run),
        "environment": environment(),
    }


def summarise(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds.

    Args:
        seeds: contents of `seed<N>.json`.

    Returns:
        {"setting", "seeds", "methods": {name: {"title", "seeds", "stored" | "batch": {"mean":
        {task: value}, "std": {task: value}, "average", "average_std", "valid_average",
        "recovery"}}}}, with "metrics": {task: name} where one is not ROC-AUC. Standard deviations
        are of the sample (n - 1), None for a single seed. A method is summarised over the seeds
        that have it; "recovery" (with "stored") is that of the averages over these seeds.
    """
    names = {name: each["methods"][name]["title"] for each in seeds for name in each["methods"]}
    summary: dict[str, Any] = {
        "setting": seeds[0]["setting"],
        "seeds": [each["seed"] for each in seeds],
        "methods": {},
    }
    for name, title in names.items():
        found = [each["methods"][name] for each in seeds if name in each["methods"]]
        kinds = [kind for kind in ("stored", "batch") if kind in found[0]]
        summary["methods"][name] = {
            "title": title,
            "seeds": len(found),
            **{kind: _spread([each[kind] for each in found]) for kind in kinds},
        }
        summary["methods"][name]["stored"]["recovery"] = _recovery(
            [each["methods"] for each in seeds], name
        )
    return summary


def _spread(values: list[dict[str, Any]]) -> dict[str, Any]:
    measured = [by_task(of_seed) for of_seed in values]
    found = {task: [scores[task][1] for scores in measured] for task in measured[0]}
    metrics = {task: metric for task, (metric, _) in measured[0].items()}
    averages = [each["average"] for each in values]
    return {
        **({"metrics": metrics} if set(metrics.values()) != {"roc_auc"} else {}),
        "mean": {task: round(fmean(scores), 5) for task, scores in found.items()},
        "std": {task: standard_deviation(scores) for task, scores in found.items()},
        "average": round(fmean(averages), 5),
        "average_std": standard_deviation(averages),
        "valid_average": round(fmean(each["valid_average"] for each in values), 5),
    }


def _recovery(seeds: list[dict[str, Any]], name: str) -> float | None:
    """Of the averages over those seeds (methods by name) that have the method; None without a
    weight average to start from."""
    found = [
        methods for methods in seeds if {name, "weight_average", "finetuned"} <= methods.keys()
    ]
    if not found:
        return None
    return recovery(
        *(
            fmean(methods[each]["stored"]["average"] for methods in found)
            for each in (name, "weight_average", "finetuned")
        )
    )


def summary_table(summary: dict[str, Any], statistics: str = "stored") -> str:
    """Markdown: test ROC-AUC in percent (or the metric that a column names) with its standard
    deviation over seeds, and recovery; a row per method."""
    methods = {name: method for name, method in summary["methods"].items() if statistics in method}
    first = next(iter(methods.values()))[statistics]
    metrics = first.get("metrics") or dict.fromkeys(first["mean"], "roc_auc")
    rows = []
    for method in methods.values():
        values = method[statistics]
        cells = [
            metric_cell(metric, values["mean"][task], values["std"][task])
            for task, metric in metrics.items()
        ]
        average = average_cell(metrics.values(), values["average"], values["average_std"])
        recovered = values.get("recovery")
        shown = "-" if recovered is None else f"{recovered:.2f}"
        rows.append([method["title"], *cells, average, shown])
    columns = [task_column(task, metric) for task, metric in metrics.items()]
    return markdown_table(["method", *columns, "average", "recovery"], rows)


def data_table(records: Mapping[str, Mapping[str, Any]]) -> str:
    """What each task was trained on, from `MoleculeDataset.record` by task."""
    head = ["task", "file", "molecules", "rows dropped", "split", "train / valid / test", "labels"]
    return markdown_table(head, [_data_row(task, record) for task, record in records.items()])


def _data_row(task: str, record: Mapping[str, Any]) -> list[str]:
    lacking = {subset: len(names) for subset, names in record["not_measured"].items() if names}
    labels = [said_labels(record)]
    labels += [f"{count} not measured in {subset}" for subset, count in lacking.items()]
    counts = [str(record[name]) for name in ("molecules", "dropped")]
    sizes = " / ".join(str(size) for size in record["parts"].values())
    return [task, record["file"], *counts, record["split"], sizes, "; ".join(labels)]
