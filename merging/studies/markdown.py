"""merging.studies.markdown"""

from collections.abc import Collection, Iterable, Sequence
from statistics import fmean, stdev
from typing import Any


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard deviation (of a sample; None of one value) with the single values."""
    return {
        "mean": round(fmean(values), 5),
        "std": standard_deviation(values),
        "values": [round(value, 5) for value in values],
    }


def standard_deviation(values: Sequence[float]) -> float | None:
    """The sample standard deviation, to five digits; None of a single value."""
    return round(stdev(values), 5) if len(values) > 1 else None


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Without a final newline; a bar or a line break in a cell stays in its cell."""
    lines = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in (head, *rows)]
    first, *others = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([first, "|---" * len(head) + "|", *others])


METRIC_NAMES = {"roc_auc": "ROC-AUC", "accuracy": "accuracy", "scaled_mae": "MAE / std"}
"""Scores for people; `MAE / std` is in standard deviations of the training labels."""


def metric_cell(metric: str, mean: float, std: float | None = None) -> str:
    """A score of that name (`METRIC_NAMES`): a fraction in percent, an error with three digits."""
    if metric != "scaled_mae":
        return percent(mean, std)
    return f"{mean:.3f}" if std is None else f"{mean:.3f} ± {std:.3f}"


def average_cell(metrics: Collection[str], mean: float, std: float | None = None) -> str:
    """The average score of tasks with those metrics, as these; `-` where they differ."""
    if len(distinct := set(metrics)) > 1:
        return "-"
    (metric,) = distinct
    return metric_cell(metric, -mean if metric == "scaled_mae" else mean, std)


def task_column(task: str, metric: str) -> str:
    """The head of a task's column; a metric other than ROC-AUC is named."""
    return task if metric == "roc_auc" else f"{task} ({METRIC_NAMES[metric]})"


def percent(mean: float, std: float | None = None) -> str:
    """`71.9` or `71.9 ± 0.4`, from fractions."""
    return f"{100 * mean:.1f}" if std is None else f"{100 * mean:.1f} ± {100 * std:.1f}"
