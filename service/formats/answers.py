"""Predictions as JSON.

A molecule has 678 predictions with eight datasets; encoding them takes more time than the rest of
the web framework.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from models.task import Target, TaskInfo
from service.core.answer import Answer, Result
from service.core.engine import EngineInfo, TaskAnswer
from service.core.reading import ItemFailure

# The precision of a float32 in [0, 1]. As a float64, 0.2 would be written 0.20000000298023224, and
# responses would be twice as long.
_DECIMALS = 8
_CHUNK = 16  # about 3 ms, after which other requests run on the event loop


async def render(
    results: Sequence[Result], info: EngineInfo, tasks: Sequence[str], explain: Collection[str] = ()
) -> bytes:
    """Return the body of a `PredictResponse`.

    Args:
        results: results in the order of the request.
        info: description of the model that answered.
        tasks: task names, in the order in which they are written.
        explain: names of explanations to add; of those that are computed, what the results hold.
    """
    items = []
    for k, result in enumerate(results):
        if k % _CHUNK == _CHUNK - 1:
            await asyncio.sleep(0)
        shown = item(k, result, info, tasks, explain)
        items.append(orjson.dumps(shown))
    return b'{"model":%b,"predictions":[%b]}' % (orjson.dumps(model(info)), b",".join(items))


def model(info: EngineInfo) -> dict[str, str]:
    """Return the `ModelName` fields of a model: name, version and digest."""
    return {"name": info.name, "version": info.version, "digest": info.digest}


def item(
    index: int,
    result: Result,
    info: EngineInfo,
    tasks: Sequence[str],
    explain: Collection[str] = (),
) -> dict[str, Any]:
    """Return the `PredictionItem` of a molecule or graph as a dictionary.

    Args:
        index: position in the request.
        result: the answer, or the reason why there is none.
        info: description of the model that answered.
        tasks: task names, in the order in which they are written.
        explain: names of explanations to add; of those that are computed, what the results hold.
    """
    if isinstance(result, ItemFailure):
        return failed_item(index, result)
    shown: dict[str, Any] = {"index": index, "smiles": result.smiles}
    shown["tasks"] = {task: _shown(info.task_infos[task], result.tasks[task]) for task in tasks}
    units = {task: info.task_infos[task].unit_of for task in tasks if info.task_infos[task].units}
    if units:
        shown["units"] = units
    if "routing" in explain:
        shown["routing"] = {task: _sites(info, result.tasks[task].routing) for task in tasks}
    if "experts" in explain:
        shown["experts"] = {task: _experts(info, task, result.tasks[task]) for task in tasks}
    if without := [task for task in tasks if result.tasks[task].no_fingerprint]:
        shown["without_forest"] = without
    return {**shown, **result.explanations}


def failed_item(index: int, failure: ItemFailure) -> dict[str, Any]:
    """Return the item of a molecule or graph without an answer, as a dictionary."""
    error = {"code": failure.code, "message": failure.message}
    return {"index": index, "smiles": None, "error": error}


def _experts(info: EngineInfo, task: str, answer: TaskAnswer) -> dict[str, Any]:
    """Return the answer and weight of every expert that takes part, by its name."""
    described = info.task_infos[task]
    if not answer.experts:
        return {"own": {"weight": 1.0, "values": _shown(described, answer)}}
    weights = info.forests[task].weights("both" if len(answer.experts) > 1 else "forest")
    return {
        name: {
            "weight": weights[name],
            "values": dict(zip(described.labels, written(values, described.target), strict=True)),
        }
        for name, values in answer.experts.items()
    }


def _shown(task: TaskInfo, answer: TaskAnswer) -> dict[str, Any]:
    if answer.forces is not None:
        return {
            "energy": written(answer.values, task.target)[0],
            "forces": written(answer.forces, task.target),
        }
    values = written(answer.values, task.target)
    if task.level == "graph":
        return dict(zip(task.labels, values, strict=True))
    return {f"{task.level}s": [dict(zip(task.labels, row, strict=True)) for row in values]}


def _sites(info: EngineInfo, weights: NDArray[np.float32]) -> Mapping[str, Mapping[str, float]]:
    """Convert routing weights (sites, experts) to dictionaries by site and expert."""
    return {
        site: dict(zip(info.tasks, written(row, "multiclass"), strict=True))
        for site, row in zip(info.sites, weights, strict=True)
    }


def written(values: NDArray[np.floating[Any]], target: Target) -> list[Any]:
    """Convert predictions to nested lists of the numbers of `rounded`."""
    return list(rounded(values, target).tolist())


def rounded(values: NDArray[np.floating[Any]], target: Target) -> NDArray[np.float64]:
    """Convert predictions to the numbers that all responses, files and tables show.

    Probabilities are rounded to 8 decimals. Other values have the fewest digits that identify the
    float32 or float64, and 0.0 in place of -0.0.

    Args:
        values: array of any shape.
        target: prediction target; classification targets have probabilities.
    """
    if target in ("multilabel", "multiclass"):
        return values.astype(np.float64).round(_DECIMALS)
    # The text of a numpy number is the shortest that identifies it; adding 0.0 removes -0.0.
    return values.astype(str).astype(np.float64) + 0.0


def number_table(
    answers: Sequence[Answer], info: EngineInfo, tasks: Sequence[str]
) -> NDArray[np.float64]:
    """Return the numbers of several molecules as a table, (answers, labels of all tasks).

    Args:
        answers: at least one, of tasks with one row of numbers for a molecule.
        info: description of the model.
        tasks: task names; the columns are in their order.
    """
    blocks = [
        rounded(
            np.stack([answer.tasks[task].values for answer in answers]),
            info.task_infos[task].target,
        )
        for task in tasks
    ]
    return np.concatenate(blocks, axis=1)


def number_columns(info: EngineInfo, tasks: Sequence[str]) -> list[str]:
    """Return the names of the columns of `number_table`: `task.label`, or `task.label [unit]`."""
    names = []
    for task in tasks:
        units = info.task_infos[task].unit_of
        for label in info.labels[task]:
            unit = units.get(label)
            names.append(f"{task}.{label}" + (f" [{unit}]" if unit else ""))
    return names
