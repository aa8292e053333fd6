"""Where answers lie among those for approved drugs, as a table: what `explain: ["drugs"]` of
`/predict` adds."""

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

from service.core.answer import Answer
from service.core.engine import PredictionQuery
from service.core.explaining import Explained
from service.core.explanations.drugs import check_drugs, percentiles

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = ("molecule", "task", "label", "value", "percentile")


def drugs_frame(
    query: PredictionQuery, answers: Mapping[Hashable, Answer], explained: Explained, pandas: Any
) -> "pd.DataFrame":
    """Compare answers with those for drugs.

    Args:
        query: that was answered.
        answers: of molecules, by the names of their rows.
        explained: tasks and labels; those of tasks that drugs were not predicted for are left out.
        pandas: the package.

    Returns:
        A row by molecule, task and label: the answer, and what percentage of drugs has a lower one.

    Raises:
        UnsupportedQueryError: see `check_drugs`.
    """
    table, info = check_drugs(query), query.engine.info
    found = percentiles(info, table, list(answers.values()), explained.labels) if answers else []
    rows = [
        (name, task, label, float(answer.tasks[task].values[info.labels[task].index(label)]), share)
        for (name, answer), by_task in zip(answers.items(), found, strict=True)
        for task, labels in by_task.items()
        for label, share in labels.items()
    ]
    return pandas.DataFrame(rows, columns=_COLUMNS)
