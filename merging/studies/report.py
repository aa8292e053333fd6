"""The comparison as files: `seed<N>.json`, `summary.json`, `ablations.json`, a Markdown table.
`merging.drawing.figures` draws from these."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from merging.data.files import read_json, read_seeds, write_json
from merging.run.run import Run
from merging.run.scores import (
    Method,
    environment,
    finetuned_method,
    joint_method,
    merger_method,
    recovery,
)
from merging.run.stage import Stage
from merging.run.stages import adapters, joint, merged, teacher
from merging.studies.markdown import (
    average_cell,
    markdown_table,
    metric_cell,
    over_seeds,
    standard_deviation,
    task_column,
)
from merging.studies.results import accounting, expert_weights, swap_matrix, swapped, task_weights
from merging.studies.rows import ablation_rows, merger_candidates, table_rows
from merging.targets.metrics import scores_by_task

Build = Callable[[Sequence[Stage], str], None]
"""Makes stages, maybe several at a time; the text says what they are."""


def compare(runs: list[Run], folder: Path, build: Build) -> dict[str, Any]:
    """Measure every method in every run on molecules, and write the setting's results.

    Args:
        runs: one for each seed of one setting.
        folder: below it `<setting>/seed<N>.json`, `<setting>/summary.json` and `<setting>/table.md`
            are written; other seeds that lie there already are part of the summary.
        build: how stages are made.

    Returns:
        The summary, see `summarise`.
    """
    tried = [row for run in runs for row in merger_candidates(run)]
    build([stage for row in tried for stage in row.stages], "candidates")
    rows = {run.seed: table_rows(run) for run in runs}
    wanted = [stage for of_seed in rows.values() for row in of_seed for stage in row.stages]
    for run in runs:
        pairs = [(source, task) for source in run.tasks for task in run.tasks]
        wanted += [swapped(run, source, task) for source, task in pairs]
        wanted += [task_weights(run, task) for task in run.tasks]
    build(wanted, "comparison")
    target = folder / runs[0].config.setting
    for run in runs:
        write_json(target / f"seed{run.seed}.json", seed_results(run, rows[run.seed]))
    summary = summarise(read_seeds(target))
    write_json(target / "summary.json", summary)
    (target / "table.md").write_text(summary_table(summary) + "\n")
    return summary


def ablate(run: Run, folder: Path, build: Build) -> dict[str, Any]:
    """Measure the ablations and sweeps of a configuration with one seed, and write
    `<setting>/ablations.json`.

    Returns:
        {"setting", "seed", "base", "tasks", "groups": {group: {variant: {"changes", "stored":
        {...}, "batch": {...}}}}}.
    """
    groups = ablation_rows(run)
    build([stage for rows in groups.values() for row in rows for stage in row.stages], "ablations")
    content = {
        "setting": run.config.setting,
        "seed": run.seed,
        "base": run.config.compare.ablation_base,
        "tasks": run.config.compare.ablation_tasks or run.tasks,
        "groups": {
            group: {row.title: row.task_scores() for row in rows} for group, rows in groups.items()
        },
        "environment": environment(),
    }
    write_json(folder / run.config.setting / "ablations.json", content)
    return content


def compare_plainly(runs: Sequence[Run], path: Path, build: Build) -> dict[str, Any]:
    """Measure separate models, joint training and mergers, of runs without adapters that differ in
    their seed only, and write that to a JSON file; other settings that are there stay.

    Returns:
        What the file now says: by setting, test scores by task and seconds, over the seeds.
    """
    first = runs[0]
    mergers = {how.method: how for how in (*first.family.default_mergers, first.config.merge)}
    rows: dict[str, list[Method]] = {
        "separate": [finetuned_method(run) for run in runs],
        "joint": [joint_method(run, "Joint training") for run in runs],
        **{name: [merger_method(run, how) for run in runs] for name, how in mergers.items()},
    }
    build([stage for of in rows.values() for row in of for stage in row.stages], "comparison")
    tests = {name: [_tests(row) for row in of] for name, of in rows.items()}
    compared = {
        "setting": first.config.setting,
        "config": first.config.model_dump(mode="json"),
        "seeds": [run.seed for run in runs],
        "metric": {label: metric for label, (metric, _) in tests["separate"][0].items()},
        "scores": {
            name: {label: _over([found[label][1] for found in of]) for label in of[0]}
            for name, of in tests.items()
        },
        "seconds": {
            name: _over([_seconds(name, row.run) for row in of]) for name, of in rows.items()
        },
    }
    settings = (read_json(path) or {"settings": []})["settings"]
    others = [setting for setting in settings if setting["setting"] != compared["setting"]]
    content = {
        "what": "test scores of separate, joint and merged models without adapters",
        "settings": sorted([*others, compared], key=lambda setting: str(setting["setting"])),
        "environment": environment(),
    }
    write_json(path, content)
    return content


def _tests(row: Method) -> dict[str, tuple[str, float]]:
    """Metric and test score by task; by task and metric, where a task has several."""
    found = {}
    for task, stage in zip(row.tasks, row.stages, strict=True):
        values = row.run.result(stage).record["stored"]["test"]
        shown = row.run.family.table_metrics(row.run.dataset(task).info)
        for metric in shown:
            found[task if len(shown) == 1 else f"{task}, {metric}"] = metric, values[metric]
    return found


def _seconds(name: str, run: Run) -> float:
    """Of the training, or of the merge."""
    stages = {"separate": [teacher(run, task) for task in run.tasks], "joint": [joint(run)]}
    made = stages.get(name, [merged(run)])
    seconds = sum(float(run.result(stage).record["seconds"]) for stage in made)
    return round(seconds, 4)


def _over(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation (of a sample; 0 for one value) and the values themselves."""
    found = over_seeds(values)
    return {**found, "std": found["std"] or 0.0}


def scores_table(settings: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row for each setting and task, scores of `compare_plainly` as mean and deviation;
    a method that a setting lacks is left blank."""
    names = list(dict.fromkeys(name for content in settings for name in content["scores"]))
    rows = []
    for content in settings:
        found = content["scores"]
        for task, metric in content["metric"].items():
            cells = [_cell(found[name][task], metric) if name in found else "" for name in names]
            rows.append([content["setting"], task, metric, *cells])
    return markdown_table(["setting", "task", "metric", *names], rows)


def _cell(value: dict[str, Any], metric: str) -> str:
    factor, digits = (100, 1) if metric in ("accuracy", "roc_auc") else (1, 3)
    return f"{factor * value['mean']:.{digits}f} +- {factor * value['std']:.{digits}f}"


def seed_results(run: Run, rows: list[Method]) -> dict[str, Any]:
    """All results of one seed.

    Returns:
        {"setting", "seed", "methods": {name: {"title", "merge", "stored" | "batch": {...},
        "recovery"}}, "swap_matrix", "expert_weights", "accounting", ...} with scores as
        `Method.task_scores` gives them, in [0, 1]; only some methods have "batch".
    """
    methods: dict[str, Any] = {
        row.name: {
            "title": row.title,
            "merge": row.run.config.merge.model_dump(),
            **row.task_scores(),
        }
        for row in rows
    }
    for name, method in methods.items():
        method["recovery"] = _recovery([methods], name)
    return {
        "setting": run.config.setting,
        "seed": run.seed,
        "methods": methods,
        "merge": run.result(merged(run)).record,
        "router": run.config.routing.model_dump(mode="json"),
        "finetuning": {task: run.result(teacher(run, task)).record for task in run.tasks},
        "alignment": {task: run.result(adapters(run, task)).record for task in run.tasks},
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
    names = {name: own["title"] for seed in seeds for name, own in seed["methods"].items()}
    summary: dict[str, Any] = {
        "setting": seeds[0]["setting"],
        "seeds": [seed["seed"] for seed in seeds],
        "methods": {},
    }
    for name, title in names.items():
        found = [seed["methods"][name] for seed in seeds if name in seed["methods"]]
        kinds = [kind for kind in ("stored", "batch") if kind in found[0]]
        summary["methods"][name] = {
            "title": title,
            "seeds": len(found),
            **{kind: _spread([own[kind] for own in found]) for kind in kinds},
        }
        summary["methods"][name]["stored"]["recovery"] = _recovery(
            [seed["methods"] for seed in seeds], name
        )
    return summary


def _spread(values: list[dict[str, Any]]) -> dict[str, Any]:
    measured = [scores_by_task(one) for one in values]
    metrics = {task: metric for task, (metric, _) in measured[0].items()}
    found = {task: [scores[task][1] for scores in measured] for task in metrics}
    averages = [one["average"] for one in values]
    return {
        **({"metrics": metrics} if set(metrics.values()) != {"roc_auc"} else {}),
        "mean": {task: round(fmean(own), 5) for task, own in found.items()},
        "std": {task: standard_deviation(own) for task, own in found.items()},
        "average": round(fmean(averages), 5),
        "average_std": standard_deviation(averages),
        "valid_average": round(fmean(one["valid_average"] for one in values), 5),
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
            fmean(methods[row]["stored"]["average"] for methods in found)
            for row in (name, "weight_average", "finetuned")
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
