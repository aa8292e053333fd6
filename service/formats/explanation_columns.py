"""Explanations of a row as cells: percentiles among drugs, and the names of alerts."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.core.answer import Answer
from service.core.explaining import Explained

ALERTS = "gmerging_alerts"
"""Name of the column of alerts."""


def percentile_columns(explained: Explained) -> list[str]:
    """Return the names of the columns of `percentile_table`."""
    return [f"{task}.{label} percentile among drugs" for task, label in _compared(explained)]


def percentile_table(answers: Sequence[Answer], explained: Explained) -> NDArray[np.float64]:
    """Return the percentiles of several molecules as a table, (answers, labels of all tasks), NaN
    for labels that drugs were not predicted for.

    Args:
        answers: at least one, explained.
        explained: what was asked.
    """
    columns = _compared(explained)
    table = np.full((len(answers), len(columns)), np.nan)
    for row, answer in zip(table, answers, strict=True):
        found = answer.explanations.get("drugs", {})
        row[:] = [found.get(task, {}).get(label, np.nan) for task, label in columns]
    return table


def alert_cells(answers: Sequence[Answer]) -> list[str]:
    """Return the names of the alerts of several molecules, each once, with `; ` between them; an
    empty text where there are none, and the error where they could not be searched for."""
    return [_alert_cell(answer) for answer in answers]


def _alert_cell(answer: Answer) -> str:
    error = answer.explanations.get("explanation_errors", {}).get("alerts")
    if error is not None:
        return f"{error['code']}: {error['message']}"
    names = [alert["name"] for alert in answer.explanations.get("alerts", ())]
    return "; ".join(dict.fromkeys(names))


def _compared(explained: Explained) -> list[tuple[str, str]]:
    if "drugs" not in explained.names:
        return []
    return [(task, label) for task, labels in explained.labels.items() for label in labels]
