"""How far to trust an answer (`explain: ["domain"]`): the nearest training molecules of the task,
the error that was measured on molecules as near as that, conformal sets, and how far network and
trees are apart."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import rdBase
from scipy.special import logit

from models.data.fingerprint import similarity_bits
from models.data.smiles import read_smiles
from models.domain.measured import Band, Conformal
from models.domain.neighbours import Neighbours, Words, packed
from models.domain.structures import Structure, Structures
from models.errors import MoleculeError
from models.task import TaskInfo
from service.core.answer import Answer
from service.core.engine import (
    EngineInfo,
    PredictionQuery,
    ServedDomain,
    TaskAnswer,
    UnsupportedQueryError,
)
from service.core.explaining import Explained
from service.core.reading import ItemFailure, cut

Bits = NDArray[np.bool_]
NEAREST = 3
"""Number of training molecules that are shown."""
_CHUNK = 8  # molecules searched in one call on a thread, about 50 ms for all tasks of admet
_LEAST_PROBABILITY = 1e-7
"""Probabilities nearer to 0 or 1 than a float32 can tell are cut, so that log-odds are finite."""


def similarity_fingerprint(smiles: str) -> Bits | ItemFailure:
    """Compute the bits by which a molecule is compared (`models.data.fingerprint.similarity_bits`)
    from the canonical SMILES of an answer, or return the error of one that RDKit cannot read
    again."""
    try:
        with rdBase.BlockLogs():
            return similarity_bits(read_smiles(smiles))
    except MoleculeError as error:
        return ItemFailure(error.code, cut(str(error)))


class DomainExplainer:
    """Explains answers by the training molecules near them. One search runs at a time, on a thread,
    so that requests do not take all processors from the model."""

    def __init__(
        self,
        fingerprints: Callable[[Sequence[str]], Awaitable[Sequence[Bits | ItemFailure]]],
        structures: Structures | None = None,
    ) -> None:
        """Create an explainer.

        Args:
            fingerprints: applies `similarity_fingerprint` to molecules.
            structures: of training molecules; None if the operator has none.
        """
        self._fingerprints, self._structures = fingerprints, structures
        self._searching = asyncio.Lock()

    async def __call__(
        self,
        query: PredictionQuery,
        answers: Sequence[Answer],
        explained: Explained,
        deadline: float,
    ) -> list[Any]:
        """See `service.core.explaining.Explainer`."""
        info = query.engine.info
        check_domain(info, query.tasks, answers)
        bits = await self._fingerprints([answer.smiles or "" for answer in answers])
        found: list[Any] = []
        for begin in range(0, len(answers), _CHUNK):
            chunk = slice(begin, begin + _CHUNK)
            async with self._searching:
                work = info, answers[chunk], bits[chunk], explained, self._structures
                found += await asyncio.to_thread(explain_domains, *work)
        return found


def check_domain(info: EngineInfo, tasks: Sequence[str], answers: Sequence[Answer]) -> None:
    """Raise UnsupportedQueryError if none of the tasks has an applicability domain, or an answer is
    of a graph."""
    if not any(task in info.domains for task in tasks):
        got = f"explain: got 'domain' for {', '.join(tasks)} of model {info.name}"
        known = ", ".join(info.domains) or "none of this model"
        expected = f"expected tasks whose training molecules the artifact knows: {known}"
        raise UnsupportedQueryError("unsupported_input", f"{got}, {expected}")
    if any(answer.smiles is None for answer in answers):
        got = "explain: got 'domain' for a graph, which has no fingerprint"
        raise UnsupportedQueryError("unsupported_input", f"{got}, expected a molecule as text")


def explain_domains(
    info: EngineInfo,
    answers: Sequence[Answer],
    bits: Sequence[Bits | ItemFailure],
    explained: Explained,
    structures: Structures | None = None,
) -> list[dict[str, Any] | ItemFailure]:
    """Explain answers, those of tasks with an applicability domain.

    Args:
        info: of the model.
        answers: of molecules.
        bits: their fingerprints.
        explained: which labels.
        structures: of training molecules, shown where the terms allow it.

    Returns:
        By answer, the fields of `TaskDomainOut` by task; the error of one without a fingerprint.
    """
    return [
        own
        if isinstance(own, ItemFailure)
        else {
            task: _of_task(info, task, answer, packed(own[None])[0], labels, structures)
            for task, labels in explained.labels.items()
            if task in info.domains
        }
        for answer, own in zip(answers, bits, strict=True)
    ]


def _of_task(
    info: EngineInfo,
    name: str,
    answer: Answer,
    query: Words,
    labels: Sequence[str],
    structures: Structures | None,
) -> dict[str, Any]:
    task, served = info.task_infos[name], info.domains[name]
    near = served.domain.molecules.nearest(query, NEAREST)
    position = {label: k for k, label in enumerate(task.labels)}
    nearest = float(near.similarities[0])
    shown = {
        label: _of_label(task, served, answer.tasks[name], position[label], nearest)
        for label in labels
    }
    return {
        "nearest": _neighbours(near, served, labels, structures),
        "labels": {label: own for label, own in shown.items() if own},
    }


def _neighbours(
    near: Neighbours, served: ServedDomain, labels: Sequence[str], structures: Structures | None
) -> list[dict[str, Any]]:
    """Return the fields of `NeighbourOut`, with structures only where the terms allow it."""
    rows = near.rows.tolist()
    known: Mapping[int, Structure] = {}
    if structures is not None and served.info.may_show:
        known = structures.find(served.digest, rows)
    shown = []
    for row, similarity in zip(rows, near.similarities.tolist(), strict=True):
        fields: dict[str, Any] = {"similarity": similarity, "row": row}
        if (found := known.get(row)) is not None:
            values = {label: found.values[label] for label in labels if label in found.values}
            fields |= {"smiles": found.smiles, "values": values}
        shown.append(fields)
    return shown


def _of_label(
    task: TaskInfo, served: ServedDomain, answer: TaskAnswer, k: int, similarity: float
) -> dict[str, Any]:
    measured, shown = served.domain.labels[k], dict[str, Any]()
    if (band := measured.band(similarity)) is not None:
        shown["band"] = _band(band)
    if measured.conformal is not None and measured.conformal.holds:
        confidence, value = served.info.confidence, float(answer.values[k])
        shown["conformal"] = _conformal(measured.conformal, confidence, value, task)
    if (spread := _spread(task, answer, k)) is not None:
        shown["spread"] = spread
    return shown


def _band(band: Band) -> dict[str, Any]:
    return {
        "from": band.start,
        "to": band.end,
        "molecules": band.molecules,
        "metric": band.metric,
        "score": band.score,
        "error": band.error,
        "error_of_base": band.error_of_base,
    }


def _conformal(
    conformal: Conformal, confidence: float, value: float, task: TaskInfo
) -> dict[str, Any]:
    shown: dict[str, Any] = {"confidence": confidence}
    if task.target == "regression":
        shown["interval"] = conformal.interval(value, task.scale)
        return {**shown, "coverage": {"all": conformal.coverage[0]}}
    shown["set"] = conformal.classes(value)
    return {**shown, "coverage": dict(zip("01", conformal.coverage, strict=True))}


def _spread(task: TaskInfo, answer: TaskAnswer, k: int) -> float | None:
    """Return how far network and trees are apart for label k; None where one of them alone
    answered."""
    if len(answer.experts) < 2:
        return None
    own, forest = (float(answer.experts[name][k]) for name in ("own", "forest"))
    if task.target == "multilabel":
        least = _LEAST_PROBABILITY
        own, forest = logit(np.clip([own, forest], least, 1 - least)).tolist()
    return abs(own - forest)
