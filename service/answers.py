"""Answers as JSON bytes. Eight task families are 678 numbers a molecule: how they are written costs more than the rest of the framework together."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from service.engine import EngineInfo
from service.parsing import Unreadable
from service.pipeline import Answer

# What a float32 in [0, 1] knows, and no more: written as it is, 0.2 would be 0.20000000298023224, and answers twice as long.
_DECIMALS = 8
_CHUNK = 16  # about 3 ms, after which other requests get their turn on the event loop


async def render(results: Sequence[Answer | Unreadable], info: EngineInfo, tasks: Sequence[str], explain_routing: bool) -> bytes:
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
        items.append(orjson.dumps(_item(k, result, info, tasks, explain_routing)))
    model = orjson.dumps({"name": info.name, "version": info.version, "digest": info.digest})
    return b'{"model":%b,"predictions":[%b]}' % (model, b",".join(items))


def _item(index: int, result: Answer | Unreadable, info: EngineInfo, tasks: Sequence[str], explain_routing: bool) -> dict[str, Any]:
    if isinstance(result, Unreadable):
        return {"index": index, "smiles": None, "error": {"code": result.code, "message": result.message}}
    item: dict[str, Any] = {"index": index, "smiles": result.smiles}
    item["tasks"] = {task: _named(info.labels[task], result.probabilities[task]) for task in tasks}
    if explain_routing:
        item["routing"] = {task: _sites(info, result.routing[task]) for task in tasks}
    return item


def _sites(info: EngineInfo, weights: NDArray[np.float32]) -> Mapping[str, Mapping[str, float]]:
    """Routing weights (sites, experts) by name."""
    return {site: _named(info.tasks, row) for site, row in zip(info.sites, weights, strict=True)}


def _named(names: Sequence[str], values: NDArray[np.float32]) -> dict[str, float]:
    return dict(zip(names, values.astype(np.float64).round(_DECIMALS).tolist(), strict=True))
