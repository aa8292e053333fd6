"""Losses of supervised training, by what the answers of a task are."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from models.task import TaskInfo


def loss(outputs: Tensor, labels: Tensor, info: TaskInfo) -> Tensor:
    """Mean over the known labels: scalar, 0 where nothing is known.

    Args:
        outputs: (n, C) of the head.
        labels: (n, C) with NaN where missing; of classes (n,) int64, -1 where unknown.
        info: multilabel: binary cross-entropy. multiclass: cross-entropy. regression: squared
            difference.
    """
    if info.target == "multiclass":
        known = (labels >= 0).sum().clamp(min=1)
        return F.cross_entropy(outputs, labels, ignore_index=-1, reduction="sum") / known
    if info.target == "multilabel":
        return masked_loss(outputs, labels)
    known = ~labels.isnan()
    differences = torch.where(known, (outputs - labels.nan_to_num()).square(), 0.0)
    return differences.sum() / known.sum().clamp(min=1)


def masked_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy over the known labels: logits and labels (G, C), NaN where missing ->
    scalar."""
    known = ~labels.isnan()
    terms = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
    return torch.where(known, terms, 0.0).sum() / known.sum().clamp(min=1)


@dataclass(frozen=True)
class LabelScale:
    """Location and scale of the labels of a regression, (C,) each. Training sees standardised
    labels; afterwards the scale is folded into the head, which answers in the labels' own units."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, info: TaskInfo, labels: Iterable[Tensor]) -> Self | None:
        """Of the known training labels, (n, C) by step: 1 for the deviation of a constant label.
        None for tasks that are no regression."""
        if info.target != "regression":
            return None
        known = torch.cat(list(labels)).double()
        mean = known.nanmean(0).nan_to_num()
        deviation = (known - mean).square().nanmean(0).sqrt().nan_to_num()
        return cls(mean.float(), torch.where(deviation > 0, deviation, 1.0).float())

    def standardised(self, labels: Tensor) -> Tensor:
        """(labels - mean) / deviation."""
        return (labels - self.mean) / self.deviation

    def folded(self, head: dict[str, Tensor]) -> dict[str, Tensor]:
        """A linear head that answers in the labels' units."""
        weight, bias = head["weight"], head["bias"]
        return {
            "weight": weight * self.deviation[:, None],
            "bias": bias * self.deviation + self.mean,
        }
