"""Markdown tables, and the numbers in their cells."""

from collections.abc import Collection, Iterable, Sequence
from statistics import fmean, stdev
from typing import Any


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, sample standard deviation (None for a single value) and values, all rounded."""
    return {
        "mean": round(fmean(values), 5),
        "std": standard_deviation(values),
        "values": [round(value, 5) for value in values],
    }


def standard_deviation(values: Sequence[float]) -> float | None:
    """Compute the sample standard deviation to five digits; None for a single value."""
    return round(stdev(values), 5) if len(values) > 1 else None


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table without a final newline; bars in cells are escaped, and line breaks
    become spaces."""
    lines = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in (head, *rows)]
    first, *others = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([first, "|---" * len(head) + "|", *others])


METRIC_NAMES = {
    "roc_auc": "ROC-AUC",
    "auprc": "AUPRC",
    "accuracy": "accuracy",
    "scaled_mae": "MAE / std",
    "spearman": "Spearman",
}
"""Titles of scores; `MAE / std` is in standard deviations of the training labels."""
_PLAIN = ("scaled_mae", "spearman")
"""Metrics that are written as they are; the others are in percent."""


def metric_cell(metric: str, mean: float, std: float | None = None) -> str:
    """Format a metric (a key of `METRIC_NAMES`): fractions in percent, errors and correlations with
    three digits."""
    if metric not in _PLAIN:
        return percent(mean, std)
    return f"{mean:.3f}" if std is None else f"{mean:.3f} ± {std:.3f}"


def average_cell(metrics: Collection[str], mean: float, std: float | None = None) -> str:
    """Format the average score of tasks, as their metric; `-` if they have different metrics."""
    if len(distinct := set(metrics)) > 1:
        return "-"
    (metric,) = distinct
    return metric_cell(metric, -mean if metric == "scaled_mae" else mean, std)


def task_column(task: str, metric: str) -> str:
    """Return the title of a task's column, with the metric unless that is ROC-AUC."""
    return task if metric == "roc_auc" else f"{task} ({METRIC_NAMES[metric]})"


def percent(mean: float, std: float | None = None) -> str:
    """Format a fraction in percent, `71.9`, or with its standard deviation, `71.9 ± 0.4`."""
    return f"{100 * mean:.1f}" if std is None else f"{100 * mean:.1f} ± {100 * std:.1f}"
