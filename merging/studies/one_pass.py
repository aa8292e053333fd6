"""The study of joint alignment (`gmerging study one-pass`): variants of its settings, measured
against their teachers and against the merged backbone without adapters."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from merging.data.files import write_bytes, write_json
from merging.family import RunConfig
from merging.run.one_pass import one_pass, settings_of
from merging.run.run import Run
from merging.run.scores import Method, environment, one_pass_methods, recovery
from merging.run.stage import Stage
from merging.studies.markdown import (
    average_cell,
    markdown_table,
    metric_cell,
    over_seeds,
    task_column,
)
from merging.targets.metrics import scores_by_task
from models.errors import ConfigError

BASE = "base"
"""Name of the variant with the configured settings."""
REFERENCES = {"one_pass_teachers": "teachers", "one_pass_start": "start, without training"}
Build = Callable[[Sequence[Stage], str], None]
"""A function that runs stages; the text names them for its progress bar."""


def variant_runs(run: Run, names: Sequence[str] = ()) -> dict[str, Run]:
    """Return the run of every variant: "base", and those of `compare.one_pass`.

    Args:
        run: the configured run.
        names: of the variants to return; empty for all.

    Raises:
        ConfigError: there is no section `one_pass`, or no variant of a name.
    """
    settings_of(run)
    changes: Mapping[str, Any] = {BASE: {}, **run.config.compare.one_pass}
    if unknown := sorted(set(names) - changes.keys()):
        raise ConfigError(
            f"--variants: got {', '.join(unknown)}, expected names among {', '.join(changes)}"
        )
    return {
        name: run.with_changes(**run.config.one_pass_change(change))
        for name, change in changes.items()
        if name in names or not names
    }


def taught_by(config: RunConfig, artifact: Path) -> Any:
    """Return the configuration with the own streams of an artifact as teachers of all variants.
    Raises ConfigError: there is no section `one_pass`."""
    section = getattr(config, "one_pass", None)
    if section is None:
        raise ConfigError(f"one_pass: got none in {config.setting!r}, expected its settings")
    teachers = {"teachers": {"artifact": str(artifact)}, "teachers_by_task": {}}
    changed: Any = config
    return changed.with_changes({"one_pass": teachers})


def run_study(
    runs: Sequence[Run], names: Sequence[str], path: Path, build: Build
) -> dict[str, Any]:
    """Train and measure the variants one after the other; write a JSON file and beside it a
    Markdown file after every one, so that a stopped study has results.

    Args:
        runs: one run per seed of a setting.
        names: of the variants; empty for all.
        path: the JSON file.
        build: runs the stages. Finished ones are read from the work folder.

    Returns:
        {"setting", "config", "seeds", "variants": {name: {"changes", "seeds": {seed:
        `_measured`}}}, "environment"}.
    """
    first = runs[0]
    content: dict[str, Any] = {
        "what": "joint alignment: one network for all tasks, and its teachers",
        "setting": first.config.setting,
        "config": first.config.model_dump(mode="json"),
        "seeds": [run.seed for run in runs],
        "variants": {},
        "environment": environment(),
    }
    by_seed = {run.seed: variant_runs(run, names) for run in runs}
    for name in by_seed[first.seed]:
        content["variants"][name] = variant = {
            "changes": first.config.compare.one_pass.get(name, {}),
            "seeds": {},
        }
        for seed, variants in by_seed.items():
            rows = one_pass_methods(variants[name])
            build([stage for row in rows for stage in row.stages], f"{name}, seed {seed}")
            variant["seeds"][str(seed)] = _measured(variants[name], rows)
            write_json(path, content)
            tables = "\n".join(one_pass_tables(content).values())
            write_bytes(path.with_suffix(".md"), tables.encode())
    return content


def _measured(run: Run, rows: Sequence[Method]) -> dict[str, Any]:
    """Collect the results of a variant and seed: scores of the shared stream, of its teachers and
    of its start; recovery (`merging.run.scores.recovery`, with the teachers in place of the
    fine-tuned models and the start in place of the weight average); and the record of the training,
    its shares of explained variance averaged over labels."""
    scores = {row.name: row.task_scores()["stored"] for row in rows}
    averages = {name: values["average"] for name, values in scores.items()}
    record = run.result(one_pass(run)).record
    kept = "loss", "watched", "trained_molecules", "watched_molecules", "cpu_seconds", "pool"
    return {
        "scores": scores,
        "titles": {row.name: row.title for row in rows},
        "recovery": recovery(
            averages["one_pass"], averages["one_pass_start"], averages["one_pass_teachers"]
        ),
        **{name: record[name] for name in kept},
        "explained": {
            task: round(fmean(shares.values()), 4) for task, shares in record["explained"].items()
        },
    }


def one_pass_tables(content: Mapping[str, Any]) -> dict[str, str]:
    """Tabulate the study in Markdown: scores by task on test and validation data, and the loss of
    watched molecules after every epoch. Means over seeds, with the standard deviation of averages.
    """
    tables = {
        subset: f"{title}\n\n{_scores_table(content, prefix)}\n"
        for subset, prefix, title in (
            ("test", "", "Test scores; recovery is 1 for the teachers' average, 0 for the start's"),
            ("valid", "valid_", "Validation scores"),
        )
    }
    title = "Loss on outputs of the watched molecules, mean over tasks, after every epoch"
    rows = []
    for name, variant in content["variants"].items():
        curves = [_mean_curve(measured["watched"]) for measured in variant["seeds"].values()]
        rows.append([name, ", ".join(f"{fmean(v):.3f}" for v in zip(*curves, strict=True))])
    tables["loss"] = f"{title}\n\n{markdown_table(['variant', 'loss'], rows)}\n"
    return tables


def _mean_curve(watched: Mapping[str, Sequence[float]]) -> list[float]:
    return [fmean(losses) for losses in zip(*watched.values(), strict=True)]


def _scores_table(content: Mapping[str, Any], prefix: str) -> str:
    """A row per variant. Teachers and start are shown for the first variant, whose rows they are
    for all variants with the same teachers and start."""
    first = next(iter(content["variants"].values()))
    some = next(iter(first["seeds"].values()))
    of_some = _by_task(some["scores"]["one_pass"], prefix)
    metrics = {task: metric for task, (metric, _) in of_some.items()}
    rows = [
        _row(title, [seed["scores"][name] for seed in first["seeds"].values()], metrics, prefix)
        for name, title in some["titles"].items()
        if name != "one_pass"
    ]
    cells = [[*row, "", "", ""] for row in rows]
    for name, variant in content["variants"].items():
        seeds = list(variant["seeds"].values())
        row = _row(name, [seed["scores"]["one_pass"] for seed in seeds], metrics, prefix)
        recovered = [seed["recovery"] for seed in seeds]
        shown = "-" if None in recovered else f"{fmean(recovered):.2f}"
        molecules = f"{fmean(seed['trained_molecules'] for seed in seeds):.0f}"
        seconds = f"{fmean(seed['cpu_seconds'] for seed in seeds):.0f}"
        cells.append([*row, shown, molecules, seconds])
    columns = [task_column(task, metric) for task, metric in metrics.items()]
    head = ["variant", *columns, "average", "recovery", "molecules", "CPU seconds"]
    return markdown_table(head, cells)


def _by_task(scores: Mapping[str, Any], prefix: str) -> dict[str, tuple[str, float]]:
    """Test or validation scores by task."""
    found = {key.removeprefix(prefix): scores[key] for key in scores if key.startswith(prefix)}
    return scores_by_task(found)


def _row(
    title: str, seeds: Sequence[Mapping[str, Any]], metrics: Mapping[str, str], prefix: str
) -> list[str]:
    by_seed = [_by_task(scores, prefix) for scores in seeds]
    cells = [
        metric_cell(metric, fmean(scores[task][1] for scores in by_seed))
        for task, metric in metrics.items()
    ]
    average = over_seeds([scores[f"{prefix}average"] for scores in seeds])
    return [title, *cells, average_cell(metrics.values(), average["mean"], average["std"])]
