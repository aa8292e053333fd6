"""Comparisons of methods, written to results files: `seed<N>.json`, `summary.json`,
`ablations.json` and Markdown tables. `merging.drawing.figures` plots them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from merging.data.files import read_json, read_seeds, write_bytes, write_json
from merging.mergers.registry import MergeConfig
from merging.run.one_pass import one_pass
from merging.run.run import Run
from merging.run.scores import (
    Method,
    environment,
    finetuned_method,
    gmerging_methods,
    joint_method,
    merger_method,
    one_pass_method,
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


class Build(Protocol):
    """A function that runs stages, possibly in parallel and on several machines."""

    def __call__(self, stages: Sequence[Stage], description: str, more: bool = False) -> None:
        """Run stages; the text names them for a progress bar. With `more`, other stages depend on
        the results: all of them are stored when it returns."""


def compare(runs: list[Run], folder: Path, build: Build) -> dict[str, Any]:
    """Measure all methods in runs on molecules, and write the results of their setting.

    Args:
        runs: one run per seed of a setting.
        folder: the folder in which `<setting>/seed<N>.json`, `<setting>/summary.json` and
            `<setting>/table.md` are written; the summary includes seeds that are already there.
        build: runs the stages.

    Returns:
        The summary, see `summarise_seeds`.
    """
    candidates = _stages(row for run in runs for row in merger_candidates(run))
    build(candidates, "candidates", more=True)
    rows = {run.seed: table_rows(run) for run in runs}
    stages = _stages(row for methods in rows.values() for row in methods)
    for run in runs:
        pairs = [(source, task) for source in run.tasks for task in run.tasks]
        stages += [swapped(run, source, task) for source, task in pairs]
        stages += [task_weights(run, task) for task in run.tasks]
    build(stages, "comparison")
    target = folder / runs[0].config.setting
    for run in runs:
        write_json(target / f"seed{run.seed}.json", seed_results(run, rows[run.seed]))
    summary = summarise_seeds(read_seeds(target))
    write_json(target / "summary.json", summary)
    write_bytes(target / "table.md", f"{summary_table(summary)}\n".encode())
    return summary


def _stages(rows: Iterable[Method]) -> list[Stage]:
    return [stage for row in rows for stage in row.stages]


def ablate(run: Run, folder: Path, build: Build) -> dict[str, Any]:
    """Measure the ablations and sweeps of a configuration with one seed, and write
    `<setting>/ablations.json`.

    Returns:
        {"setting", "seed", "base", "tasks", "groups": {group: {variant: {"changes", "stored":
        {...}, "batch": {...}}}}}.
    """
    groups = ablation_rows(run)
    build(_stages(row for rows in groups.values() for row in rows), "ablations")
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


def compare_settings(runs: Sequence[Run], path: Path, build: Build) -> dict[str, Any]:
    """Compare separate models, joint training, mergers and, where they are configured, adapters and
    one pass, and write the results to a JSON file, which keeps its other settings.

    Args:
        runs: one run per seed of a setting.
        path: the results file.
        build: runs the stages.

    Returns:
        The content of the file: by setting, test scores by task and seconds, over seeds.
    """
    first = runs[0]
    mergers = {merge.method: merge for merge in (*first.family.default_mergers, first.config.merge)}
    rows: dict[str, list[Method]] = {
        "separate": [finetuned_method(run) for run in runs],
        "joint": [joint_method(run, "Joint training") for run in runs],
        **{name: [merger_method(run, merge) for run in runs] for name, merge in mergers.items()},
        **_adapted_rows(runs),
    }
    build(_stages(row for methods in rows.values() for row in methods), "comparison")
    tests = {name: [_test_scores(row) for row in methods] for name, methods in rows.items()}
    compared = {
        "setting": first.config.setting,
        "config": first.config.model_dump(mode="json"),
        "seeds": [run.seed for run in runs],
        "metric": {label: metric for label, (metric, _) in tests["separate"][0].items()},
        "scores": {
            name: {label: _over([scores[label][1] for scores in by_seed]) for label in by_seed[0]}
            for name, by_seed in tests.items()
        },
        "seconds": {
            name: _over([_seconds(name, row.run) for row in methods])
            for name, methods in rows.items()
        },
        **_numbers(rows),
    }
    settings = (read_json(path) or {"settings": []})["settings"]
    others = [setting for setting in settings if setting["setting"] != compared["setting"]]
    content = {
        "what": "test scores of separate, joint and merged models",
        "settings": sorted([*others, compared], key=lambda setting: str(setting["setting"])),
        "environment": environment(),
    }
    write_json(path, content)
    return content


def _adapted_rows(runs: Sequence[Run]) -> dict[str, list[Method]]:
    """Return the rows of G-Merging and of its rival without data, low-rank residuals of the same
    rank, by name of the method, as far as runs have them."""
    rows: dict[str, list[Method]] = {}
    for run in runs:
        methods: list[Method] = []
        if rank := run.config.rank:
            residual = MergeConfig(method="residual", options={"rank": rank})
            methods = [merger_method(run, residual), *gmerging_methods(run)]
        if getattr(run.config, "one_pass", None) is not None:
            methods.append(one_pass_method(run))
        for method in methods:
            rows.setdefault(method.name, []).append(method)
    return rows


def _numbers(rows: Mapping[str, Sequence[Method]]) -> dict[str, Any]:
    """Count the numbers that adapters and residuals add for a task: {"numbers_per_task": {name:
    count}}; nothing without adapters."""
    if "gmerging_own" not in rows:
        return {}
    run, plain = rows["gmerging_own"][0].run, rows["residual"][0].run
    layers, width = run.config.shape.size
    return {
        "numbers_per_task": {
            "residual": run.result(merged(plain)).record["numbers"],
            "gmerging_own": (layers + 1) * 2 * width * run.config.rank,
        }
    }


def _test_scores(row: Method) -> dict[str, tuple[str, float]]:
    """Return metric and test score by task, or by "task, metric" if the task shows several."""
    scores = {}
    for task, stage in zip(row.tasks, row.stages, strict=True):
        values = row.run.result(stage).record["stored"]["test"]
        shown = row.run.family.table_metrics(row.run.dataset(task).info)
        for metric in shown:
            scores[task if len(shown) == 1 else f"{task}, {metric}"] = metric, values[metric]
    return scores


def _seconds(name: str, run: Run) -> float:
    """Return the seconds of training ("separate", "joint", adapters, one pass) or of a merger."""
    training: dict[str, Callable[[], list[Stage]]] = {
        "separate": lambda: [teacher(run, task) for task in run.tasks],
        "joint": lambda: [joint(run)],
        "gmerging_own": lambda: [adapters(run, task) for task in run.tasks],
        "one_pass": lambda: [one_pass(run)],
    }
    training["gmerging_moe"] = training["gmerging_own"]
    stages = training.get(name, lambda: [merged(run)])()
    return round(sum(float(run.result(stage).record["seconds"]) for stage in stages), 4)


def _over(values: Sequence[float]) -> dict[str, Any]:
    """Aggregate like `over_seeds`, with standard deviation 0 of a single value."""
    summary = over_seeds(values)
    return {**summary, "std": summary["std"] or 0.0}


def comparison_table(settings: Sequence[dict[str, Any]]) -> str:
    """Tabulate the settings of `compare_settings` in Markdown: mean and standard deviation
    of the scores, a row per setting and task; the cell of a method that was not measured is empty.
    """
    names = list(dict.fromkeys(name for content in settings for name in content["scores"]))
    rows = []
    for content in settings:
        scores = content["scores"]
        for task, metric in content["metric"].items():
            cells = [_cell(scores[name][task], metric) if name in scores else "" for name in names]
            rows.append([content["setting"], task, metric, *cells])
    return markdown_table(["setting", "task", "metric", *names], rows)


def _cell(value: dict[str, Any], metric: str) -> str:
    factor, digits = (100, 1) if metric in ("accuracy", "roc_auc") else (1, 3)
    return f"{factor * value['mean']:.{digits}f} +- {factor * value['std']:.{digits}f}"


def seed_results(run: Run, rows: list[Method]) -> dict[str, Any]:
    """Collect the results of one seed.

    Args:
        run: the run.
        rows: its measured methods.

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
    for row in rows:
        if row.name == "residual":
            methods[row.name]["numbers_per_task"] = run.result(merged(row.run)).record["numbers"]
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


def summarise_seeds(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Compute means and standard deviations over seeds.

    Args:
        seeds: contents of `seed<N>.json`.

    Returns:
        {"setting", "seeds", "methods": {name: {"title", "seeds", "stored" | "batch": {"mean":
        {task: value}, "std": {task: value}, "average", "average_std", "valid_average",
        "recovery"}}}}, with "metrics": {task: name} if one is not ROC-AUC. Standard deviations are
        of the sample (n - 1), None for a single seed. A method is summarised over the seeds that
        have it; "recovery" (with "stored") is computed from the averages over these seeds.
    """
    titles = {name: row["title"] for seed in seeds for name, row in seed["methods"].items()}
    summary: dict[str, Any] = {
        "setting": seeds[0]["setting"],
        "seeds": [seed["seed"] for seed in seeds],
        "methods": {},
    }
    for name, title in titles.items():
        rows = [seed["methods"][name] for seed in seeds if name in seed["methods"]]
        kinds = [kind for kind in ("stored", "batch") if kind in rows[0]]
        summary["methods"][name] = {
            "title": title,
            "seeds": len(rows),
            **{kind: _spread([row[kind] for row in rows]) for kind in kinds},
        }
        summary["methods"][name]["stored"]["recovery"] = _recovery(
            [seed["methods"] for seed in seeds], name
        )
    return summary


def _spread(values: list[dict[str, Any]]) -> dict[str, Any]:
    by_seed = [scores_by_task(scores) for scores in values]
    metrics = {task: metric for task, (metric, _) in by_seed[0].items()}
    by_task = {task: [scores[task][1] for scores in by_seed] for task in metrics}
    averages = [scores["average"] for scores in values]
    return {
        **({"metrics": metrics} if set(metrics.values()) != {"roc_auc"} else {}),
        "mean": {task: round(fmean(scores), 5) for task, scores in by_task.items()},
        "std": {task: standard_deviation(scores) for task, scores in by_task.items()},
        "average": round(fmean(averages), 5),
        "average_std": standard_deviation(averages),
        "valid_average": round(fmean(scores["valid_average"] for scores in values), 5),
    }


def _recovery(seeds: list[dict[str, Any]], name: str) -> float | None:
    """Compute the recovery of a method from averages over the seeds (methods by name) that have it
    and its references; None if there is no such seed."""
    names = name, "weight_average", "finetuned"
    complete = [methods for methods in seeds if {*names} <= methods.keys()]
    if not complete:
        return None
    averages = (fmean(row[name]["stored"]["average"] for row in complete) for name in names)
    return recovery(*averages)


def summary_table(summary: dict[str, Any], statistics: str = "stored") -> str:
    """Tabulate a summary (`summarise_seeds`) in Markdown: test ROC-AUC in percent, or the metric
    that a column names, with its standard deviation over seeds, and recovery; a row per method."""
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
