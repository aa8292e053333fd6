"""Explanations of rows of files and lines of streams: those that one cell can hold."""

from collections.abc import Sequence
from typing import get_args

from models.errors import InvalidInputError, did_you_mean
from service.core.engine import PredictionQuery
from service.core.explaining import NOTHING, Explained
from service.core.explanations.drugs import check_drugs
from service.schemas import RowExplanation


def row_explanations(names: Sequence[str]) -> tuple[RowExplanation, ...]:
    """Return the explanations that a list names, each once. Raises InvalidInputError: a name is
    unknown."""
    known: dict[str, RowExplanation] = {name: name for name in get_args(RowExplanation)}
    for name in names:
        if name not in known:
            expected = f"expected {' or '.join(known)}{did_you_mean(name[:64], known)}"
            raise InvalidInputError(f"explain: got {name[:64]!a}, {expected}")
    return tuple(known[name] for name in dict.fromkeys(names))


def explained_rows(query: PredictionQuery, names: Sequence[RowExplanation]) -> Explained:
    """Return what is asked for every row, about all labels of the tasks.

    Args:
        query: of the rows.
        names: of the explanations.

    Raises:
        UnsupportedQueryError: the model cannot be explained in this way.
    """
    if not names:
        return NOTHING
    if "drugs" in names:
        check_drugs(query)
    labels = query.engine.info.labels
    by_task = {task: labels[task] for task in query.tasks}
    return Explained(tuple(names), by_task)
