"""Markdown tables of the study of GFFMerge from a pre-trained start."""

from collections.abc import Callable, Mapping
from statistics import mean, stdev
from typing import Any

from merging.studies.markdown import markdown_table

_QUANTITIES = {"forces": "forces, meV/Angstrom", "energy": "energy, meV"}


def pretrained_forces_tables(results: Mapping[str, Any]) -> str:
    """Tabulate a results file in Markdown: by configuration the errors, averaged over tasks and by
    task, of the methods that are finished."""
    sections = []
    for setting, entry in results.items():
        sections += [f"### {setting}", errors_table(entry)]
        sections += ["Forces by task, meV/Angstrom:", _task_table(entry)]
    return "\n\n".join(sections) + "\n"


def errors_table(entry: Mapping[str, Any]) -> str:
    """Tabulate the mean over tasks of the mean absolute errors, the CPU seconds of making the
    model, and the number of seeds, a row per finished method."""

    def average(key: str) -> Callable[[Mapping[str, Any]], float]:
        return lambda record: mean(error[key] for error in record["errors"].values())

    rows = []
    for method, by_seed in entry["rows"].items():
        errors = [_spread(by_seed, average(key)) for key in _QUANTITIES]
        timed = [record["seconds"] for record in by_seed.values() if "seconds" in record]
        seconds = f"{mean(timed):.0f}" if timed else ""
        rows.append([method, *errors, seconds, str(len(by_seed))])
    return markdown_table(["method", *_QUANTITIES.values(), "seconds", "seeds"], rows)


def _task_table(entry: Mapping[str, Any]) -> str:
    def error(task: str) -> Callable[[Mapping[str, Any]], float]:
        return lambda record: float(record["errors"][task]["forces"])

    tasks = entry["settings"]["tasks"]
    rows = [
        [method, *(_spread(by_seed, error(task)) for task in tasks)]
        for method, by_seed in entry["rows"].items()
    ]
    return markdown_table(["method", *tasks], rows)


def _spread(by_seed: Mapping[str, Any], value: Callable[[Mapping[str, Any]], float]) -> str:
    values = [value(record) for record in by_seed.values()]
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
