"""ROC-AUC as the field reports it, and batched inference for it."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from models.data.batch import GraphBatch
from models.data.molecule import PackedGraphs
from models.errors import TrainingError


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
    defined_values = [value for value in per_label if not math.isnan(value)]
    return RocAuc(
        sum(defined_values) / len(defined_values) if defined_values else math.nan, tuple(per_label)
    )


def batches(
    graphs: PackedGraphs, rows: Tensor, batch_size: int
) -> Iterator[tuple[Tensor, GraphBatch]]:
    """The chosen graphs in order, `batch_size` at a time, with their row numbers."""
    for part in rows.split(batch_size):
        yield part, graphs.select(part)


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
