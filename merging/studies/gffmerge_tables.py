"""Markdown tables of the study of GFFMerge."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from merging.studies.markdown import markdown_table

_TITLES = {"md17": "MD17", "lips20": "LiPS20"}
_QUANTITIES = {"forces": "forces, meV/Angstrom", "energy": "energy, meV"}
_EPOCH = "one joint epoch"


def gffmerge_tables(results: Mapping[str, Any]) -> str:
    """Tabulate a results file in Markdown: average errors, errors by task, and seconds."""
    sections = []
    for source, entry in results.items():
        sections += [
            f"### {_TITLES[source]}",
            average_errors_table(entry),
            "Forces by task (teachers of one beginning), meV/Angstrom:",
            _task_errors_table(entry),
            "Seconds, one after the other in one process with one thread:",
            _seconds_table(entry),
        ]
    return "\n\n".join(sections) + "\n"


def average_errors_table(entry: Mapping[str, Any]) -> str:
    """Tabulate mean absolute errors in Markdown, averaged over tasks: a row per method, a column
    per initialisation and quantity."""
    columns = [(start, key) for start in entry["settings"]["beginnings"] for key in _QUANTITIES]
    head = [f"{start} beginning: {_QUANTITIES[key]}" for start, key in columns]
    rows = []
    for method, errors in _methods(entry).items():
        averages = [
            [mean(error[key] for error in by_task.values()) for by_task in errors[start]]
            for start, key in columns
        ]
        rows.append([method, *map(_spread, averages)])
    return markdown_table(["method", *head], rows)


def _task_errors_table(entry: Mapping[str, Any]) -> str:
    tasks = entry["settings"]["tasks"]
    rows = [
        [method, *(_spread([seed[task]["forces"] for seed in errors["shared"]]) for task in tasks)]
        for method, errors in _methods(entry).items()
    ]
    return markdown_table(["method", *tasks], rows)


def _seconds_table(entry: Mapping[str, Any]) -> str:
    """Tabulate the seconds of mergers, and of joint training as epochs times those of one epoch."""
    epochs, by_seed = entry["settings"]["training"]["epochs"], entry["seconds"]
    joint = [epochs * seconds[_EPOCH] for seconds in by_seed]
    times = {f"joint training ({epochs} times one epoch)": joint}
    times |= {name: [seconds[name] for seconds in by_seed] for name in by_seed[0] if name != _EPOCH}
    rows = []
    for name, seconds in times.items():
        ratio = mean(total / value for total, value in zip(joint, seconds, strict=True))
        rows.append([name, f"{mean(seconds):.1f}", f"{ratio:.1f}"])
    return markdown_table(["method", "seconds", "times faster than joint training"], rows)


def _methods(entry: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return {method: {initialisation: errors by seed and task}}."""
    methods: dict[str, dict[str, Any]] = {}
    for row in entry["rows"]:
        methods.setdefault(row["method"], {})[row["beginning"]] = row["by_seed"]
    return methods


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
