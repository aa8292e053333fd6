"""How good answers are, by what they are; and answers for many graphs."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from models.data.batch import GraphBatch
from models.data.molecule import PackedGraphs
from models.errors import TrainingError
from models.task import Target, TaskInfo

Array = NDArray[Any]
METRICS: dict[Target, str] = {
    "multiclass": "accuracy",
    "multilabel": "roc_auc",
    "regression": "mae",
    "energy_and_forces": "forces",
}
"""What the answers of a target are mainly measured by."""
TITLES = {
    "accuracy": "accuracy",
    "roc_auc": "ROC-AUC",
    "mae": "mean absolute error",
    "energy": "error of energies, meV",
    "forces": "error of forces, meV / Angstrom",
}
PERCENT = ("accuracy", "roc_auc")
"""Metrics that tables show in per cent."""


def score(outputs: Array, labels: Array, info: TaskInfo) -> float:
    """What epochs are compared by: the main metric, for a regression with a minus sign, so that the
    greater is the better. NaN where no label is known."""
    if info.target == "regression":
        return (
            -float(np.nanmean(np.abs(outputs - labels))) if not np.isnan(labels).all() else math.nan
        )
    return metrics(outputs, labels, info)[METRICS[info.target]]


def metrics(outputs: Array, labels: Array, info: TaskInfo) -> dict[str, float]:
    """Accuracy of the known classes, ROC-AUC averaged over labels, or mean absolute error averaged
    over labels, by name; NaN where no label is known.

    Args:
        outputs: (n, C), what a head says.
        labels: (n, C) with NaN where missing; of classes (n,), -1 where unknown.
        info: what the outputs are.
    """
    said, known = torch.from_numpy(outputs), torch.from_numpy(labels)
    if info.target == "multiclass":
        seen = known >= 0
        return {"accuracy": float((said.argmax(-1) == known)[seen].double().mean())}
    if info.target == "multilabel":
        return {"roc_auc": roc_auc(known, said).mean}
    return {"mae": float((said - known).double().abs().nanmean(0).nanmean())}


@dataclass(frozen=True)
class RocAuc:
    """ROC-AUC of one task.

    Attributes:
        mean: average over the labels for which it is defined, in [0, 1]; NaN if there is none.
        per_label: (C) values, NaN where a label does not have both classes.
    """

    mean: float
    per_label: tuple[float, ...]


def roc_auc(labels: Tensor, scores: Tensor) -> RocAuc:
    """ROC-AUC averaged over the labels that have both classes; missing labels are masked (Hu et al.
    2020).

    Args:
        labels: (G, C), 0 or 1, NaN where missing.
        scores: (G, C), any monotone score.

    Raises:
        TrainingError: a score is not finite.
    """
    if not bool(scores.isfinite().all()):
        remedy = "a smaller `learning_rate` may help"
        raise TrainingError(f"got answers that are not finite, expected finite ones; {remedy}")
    per_label = []
    for column, score in zip(labels.T, scores.T, strict=True):
        known = ~column.isnan()
        defined = column[known].unique().numel() == 2
        per_label.append(
            float(roc_auc_score(column[known].numpy(), score[known].double().numpy()))
            if defined
            else math.nan
        )
    return RocAuc(mean_of_defined(per_label), tuple(per_label))


def mean_of_defined(values: list[float]) -> float:
    """Mean of the values that are numbers; NaN if there is none."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def batches(
    graphs: PackedGraphs, rows: Tensor, batch_size: int
) -> Iterator[tuple[Tensor, GraphBatch]]:
    """The chosen graphs in order, `batch_size` at a time, with their row numbers."""
    for chosen in rows.split(batch_size):
        yield chosen, graphs.select(chosen)


@torch.no_grad()
def predict(
    forward: Callable[[GraphBatch], Tensor],
    graphs: PackedGraphs,
    rows: Tensor,
    device: torch.device,
    batch_size: int = 256,
) -> Tensor:
    """Outputs of `forward` for the chosen graphs, (len(rows), C), on the CPU."""
    return torch.cat(
        [forward(batch.to(device)).cpu() for _, batch in batches(graphs, rows, batch_size)]
    )
