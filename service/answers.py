"""Answers as JSON bytes. Eight task families are 678 numbers a molecule: how they are written costs more than the rest of the framework together."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from service.engine import EngineInfo
from service.pipeline import Result
from service.reading import Unreadable

# What a float32 in [0, 1] knows, and no more: written as it is, 0.2 would be 0.20000000298023224, and answers twice as long.
_DECIMALS = 8
_CHUNK = 16  # about 3 ms, after which other requests get their turn on the event loop


async def render(results: Sequence[Result], info: EngineInfo, tasks: Sequence[str], explain_routing: bool) -> bytes:
    """The body of `PredictResponse`.

    Args:
        results: in the order of the request.
        info: of the model that answered.
        tasks: in the order to show them.
        explain_routing: whether to add routing weights.
    """
    items = []
    for k, result in enumerate(results):
        if k % _CHUNK == _CHUNK - 1:
            await asyncio.sleep(0)
        items.append(orjson.dumps(item(k, result, info, tasks, explain_routing)))
    return b'{"model":%b,"predictions":[%b]}' % (orjson.dumps(model(info)), b",".join(items))


def model(info: EngineInfo) -> dict[str, str]:
    """`ModelName` of an engine."""
    return dict(zip(("name", "version", "digest"), info.artifact, strict=True))


def item(index: int, result: Result, info: EngineInfo, tasks: Sequence[str], explain_routing: bool) -> dict[str, Any]:
    """`PredictionItem` of a molecule."""
    if isinstance(result, Unreadable):
        return {"index": index, "smiles": None, "error": {"code": result.code, "message": result.message}}
    shown: dict[str, Any] = {"index": index, "smiles": result.smiles}
    shown["tasks"] = {task: named(info.labels[task], result.tasks[task].probabilities) for task in tasks}
    if explain_routing:
        shown["routing"] = {task: _sites(info, result.tasks[task].routing) for task in tasks}
    return shown


def _sites(info: EngineInfo, weights: NDArray[np.float32]) -> Mapping[str, Mapping[str, float]]:
    """Routing weights (sites, experts) by name."""
    return {site: named(info.tasks, row) for site, row in zip(info.sites, weights, strict=True)}


def named(names: Sequence[str], values: NDArray[np.float32]) -> dict[str, float]:
    """Numbers by name, as they are written everywhere."""
    return dict(zip(names, values.astype(np.float64).round(_DECIMALS).tolist(), strict=True))
