"""Losses of supervised training by what a task answers, and the scale of a regression's labels."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from models.errors import InvalidInputError
from models.task import TaskInfo


def loss(output: Tensor, labels: Tensor, info: TaskInfo) -> Tensor:
    """Mean loss over the labels that are known; 0 where none is.

    Binary cross-entropy of independent labels, cross-entropy of classes, squared error of numbers.

    Args:
        output: (B, L), what the head says: logits, or numbers in the units of `labels`.
        labels: (B, L) float, NaN where missing; of classes (B,) int64, -1 where missing.
        info: of the task; its `target` decides.

    Returns:
        A scalar.

    Raises:
        InvalidInputError: energies and forces, whose loss is a force field's own.
    """
    if info.target == "multiclass":
        total = F.cross_entropy(output, labels, ignore_index=-1, reduction="sum")
        return total / (labels >= 0).sum().clamp(min=1)
    known, filled = ~labels.isnan(), labels.nan_to_num()
    if info.target == "multilabel":
        losses = F.binary_cross_entropy_with_logits(output, filled, reduction="none")
    elif info.target == "regression":
        losses = (output - filled).square()
    else:
        expected = "expected labels, classes or numbers (a force field has a loss of its own)"
        raise InvalidInputError(f"target: got {info.target!r}, {expected}")
    return torch.where(known, losses, 0.0).sum() / known.sum().clamp(min=1)


@dataclass(frozen=True)
class LabelScale:
    """Mean and standard deviation of a regression's training labels.

    A network is trained on standardised labels, (label - mean) / deviation: then neither the units
    of a label nor its offset matter to the loss, and several labels count alike. Afterwards the
    scale is folded into the head, which from then on answers in the units of the labels.

    Attributes:
        mean, deviation: (L,) for a regression; 0 and 1 for every other target.
    """

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, info: TaskInfo, labels: Iterable[Tensor]) -> Self:
        """The scale of a task's training labels, (n, L) by step, NaN where missing.

        A label that is constant has deviation 1, one without any known value mean 0 too.
        """
        if info.target != "regression":
            return cls(torch.zeros(()), torch.ones(()))
        wide = torch.cat(list(labels)).double()
        mean = wide.nanmean(0).nan_to_num()
        deviation = (wide - mean).square().nanmean(0).sqrt().nan_to_num()
        return cls(mean.float(), torch.where(deviation > 0, deviation, 1.0).float())

    def standardised(self, values: Tensor) -> Tensor:
        """Labels or predictions (n, L) in standard deviations from the mean; classes stay."""
        if not values.is_floating_point():
            return values
        return (values - self.mean) / self.deviation

    def unfolded(self, head: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A folded head as it was trained: it answers in standard deviations from the mean."""
        deviation, mean = self.deviation.to(head["weight"]), self.mean.to(head["weight"])
        return {
            "weight": head["weight"] / deviation.unsqueeze(-1),
            "bias": (head["bias"] - mean) / deviation,
        }

    def folded(self, head: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A linear head (`weight` (L, d), `bias` (L,)) that answers in the units of the labels."""
        weight, bias = head["weight"], head["bias"]
        deviation, mean = self.deviation.to(weight), self.mean.to(weight)
        return {"weight": weight * deviation.unsqueeze(-1), "bias": bias * deviation + mean}
