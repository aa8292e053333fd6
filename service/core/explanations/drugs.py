"""`drugs`: where an answer lies among those for approved drugs."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from models.drugs import DrugTable
from service.core.answer import Answer
from service.core.engine import EngineInfo, PredictionQuery, UnsupportedQueryError
from service.core.explaining import Explained

Percentiles = dict[str, dict[str, float]]
"""By task and label."""


def check_drugs(query: PredictionQuery) -> DrugTable:
    """Return the table of the model.

    Raises:
        UnsupportedQueryError: the model has no table, or the question is for other answers than
            those that the table is of.
    """
    info = query.engine.info
    if info.drugs is None:
        got = f"drugs: got model {info.name}, which has no table of drugs"
        raise UnsupportedQueryError(
            "unsupported_explanation", f"{got}, expected one (`gmerging add-drugs`)"
        )
    if query.routing != "own":
        got = f"drugs: got routing {query.routing!r}, for which drugs were not predicted"
        raise UnsupportedQueryError("unsupported_explanation", f"{got}, expected 'own'")
    for task in query.tasks:
        if info.experts_for(task, query.experts) != info.experts_for(task):
            got = f"drugs: got other experts than the default ones of {task}"
            expected = "by which drugs were predicted, expected none"
            raise UnsupportedQueryError("unsupported_explanation", f"{got}, {expected}")
    return info.drugs


def percentiles(
    info: EngineInfo,
    table: DrugTable,
    answers: Sequence[Answer],
    labels: Mapping[str, Sequence[str]],
) -> list[Percentiles]:
    """Compare answers with those for drugs.

    Args:
        info: of the model.
        table: of the model.
        answers: at least one, of the default experts.
        labels: by task the labels to compare.

    Returns:
        One per answer. Tasks that the table does not have are left out, and those that the network
        answered alone, for lack of a fingerprint, though drugs were predicted by both experts.
    """
    found: list[Percentiles] = [{} for _ in answers]
    for task, names in labels.items():
        if task not in table.quantiles:
            continue
        columns = [info.labels[task].index(name) for name in names]
        values = np.stack([answer.tasks[task].values for answer in answers])
        shares = table.percentiles(task, values)[:, columns].tolist()
        for own, answer, row in zip(found, answers, shares, strict=True):
            if not answer.tasks[task].no_fingerprint:
                own[task] = dict(zip(names, row, strict=True))
    return found


async def explain_drugs(
    query: PredictionQuery, answers: Sequence[Answer], explained: Explained, deadline: float
) -> list[Any]:
    """Compare answers with those for drugs: see `service.core.explaining.Explainer`."""
    table = check_drugs(query)
    info = query.engine.info
    return await asyncio.to_thread(percentiles, info, table, answers, explained.labels)
