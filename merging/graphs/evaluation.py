"""How good answers are, by what they are: accuracy, ROC-AUC or mean absolute error."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from merging.data.task_data import Part
from merging.families.graphs import TaskData
from merging.training.metrics import roc_auc
from models.data.batch import GraphBatch
from models.task import Target

Metric = Literal["accuracy", "roc_auc", "mae"]
METRICS: dict[Target, Metric] = {
    "multiclass": "accuracy",
    "multilabel": "roc_auc",
    "regression": "mae",
}
"""Links are measured as a label: ROC-AUC of pairs with and without."""


def score(target: Target, labels: Tensor, logits: Tensor) -> float:
    """Accuracy of the known classes, ROC-AUC averaged over labels, or mean absolute error averaged
    over labels; NaN if nothing is known.

    Args:
        target: what the logits (n, C) are.
        labels: (n,) classes with -1 where unknown, or (n, C) with NaN where missing.
    """
    if target == "multiclass":
        known = labels >= 0
        return float((logits.argmax(-1) == labels)[known].double().mean())
    if target == "multilabel":
        return roc_auc(labels, logits).mean
    return float((logits - labels).double().abs().nanmean(0).nanmean())


@torch.no_grad()
def predict(
    forward: Callable[[GraphBatch], Tensor], data: TaskData, part: Part, batch_size: int = 256
) -> tuple[Tensor, Tensor]:
    """Labels and logits of a part, row by row, on the CPU. `forward` gives the head's outputs for a
    batch."""
    steps = [
        (step.labels, step.select(forward(step.batch))) for step in data.steps(part, batch_size)
    ]
    labels, logits = zip(*steps, strict=True)
    return torch.cat(labels), torch.cat(logits)


def evaluate(forward: Callable[[GraphBatch], Tensor], data: TaskData, part: Part) -> float:
    """The score of a part (see `score`) by the task's metric."""
    return score(data.target, *predict(forward, data, part))
