"""The results of a study as Markdown, for its page."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from merging.studies.markdown import markdown_table

_TITLES = {"md17": "MD17", "lips20": "LiPS20"}
_QUANTITIES = {"forces": "forces, meV/Angstrom", "energy": "energy, meV"}


def gffmerge_tables(results: Mapping[str, Any]) -> str:
    """All tables of a results file: errors of each method, errors by task, and seconds."""
    sections = []
    for source, entry in results.items():
        sections.append(f"### {_TITLES[source]}\n\n{average_errors_table(entry)}")
        sections.append(
            f"Forces by task (teachers of one beginning), meV/Angstrom:\n\n{by_task(entry)}"
        )
        sections.append(
            f"Seconds, one after the other in one process with one thread:\n\n{seconds(entry)}"
        )
    return "\n\n".join(sections) + "\n"


def average_errors_table(entry: Mapping[str, Any]) -> str:
    """Mean absolute errors, mean over the tasks, by method and beginning."""
    beginnings = entry["settings"]["beginnings"]
    head = [
        "method",
        *(
            f"{beginning} beginning: {title}"
            for beginning in beginnings
            for title in _QUANTITIES.values()
        ),
    ]
    rows = [
        [
            name,
            *(
                averages(by_beginning[beginning], key)
                for beginning in beginnings
                for key in _QUANTITIES
            ),
        ]
        for name, by_beginning in _methods(entry).items()
    ]
    return markdown_table(head, rows)


def by_task(entry: Mapping[str, Any]) -> str:
    """Mean absolute errors of the forces by method and task."""
    tasks = entry["settings"]["tasks"]
    rows = []
    for name, by_beginning in _methods(entry).items():
        rows.append(
            [
                name,
                *(
                    _spread([seed[task]["forces"] for seed in by_beginning["shared"]])
                    for task in tasks
                ),
            ]
        )
    return markdown_table(["method", *tasks], rows)


def seconds(entry: Mapping[str, Any]) -> str:
    """What each merger takes, against joint training of as many epochs as the configuration has."""
    epochs = entry["settings"]["training"]["epochs"]
    rows = [
        [
            f"joint training ({epochs} times one epoch)",
            *_ratio(
                [epochs * taken["one joint epoch"] for taken in entry["seconds"]], entry, epochs
            ),
        ]
    ]
    for name in entry["seconds"][0]:
        if name != "one joint epoch":
            rows.append([name, *_ratio([taken[name] for taken in entry["seconds"]], entry, epochs)])
    return markdown_table(["method", "seconds", "times faster than joint training"], rows)


def averages(by_seed: Sequence[Mapping[str, Mapping[str, float]]], key: str) -> str:
    """Mean over the tasks, then mean and standard deviation over the seeds."""
    return _spread([mean(errors[key] for errors in seed.values()) for seed in by_seed])


def _methods(entry: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{method: {beginning: errors by seed}}."""
    found: dict[str, dict[str, Any]] = {}
    for row in entry["rows"]:
        found.setdefault(row["method"], {})[row["beginning"]] = row["by_seed"]
    return found


def _ratio(values: Sequence[float], entry: Mapping[str, Any], epochs: int) -> tuple[str, str]:
    joint = [epochs * taken["one joint epoch"] for taken in entry["seconds"]]
    return (
        f"{mean(values):.1f}",
        f"{mean(whole / value for whole, value in zip(joint, values, strict=True)):.1f}",
    )


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
