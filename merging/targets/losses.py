"""Losses of supervised training, and the standardisation of regression labels."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from merging.config.training import RegressionLoss
from models.errors import InvalidInputError
from models.task import TaskInfo


def compute_loss(
    output: Tensor, labels: Tensor, info: TaskInfo, regression: RegressionLoss = "squared"
) -> Tensor:
    """Compute the loss averaged over the known labels; 0 if no label is known.

    The loss is binary cross-entropy for `multilabel`, cross-entropy for `multiclass`, and squared
    error or smooth L1 for `regression`.

    Args:
        output: (B, L), the output of the head: logits, or predictions in the units of `labels`.
        labels: (B, L) float, NaN where missing; for `multiclass` (B,) int64, -1 where missing.
        info: the task, whose `target` selects the loss.
        regression: loss of a regression; smooth L1 is 0.5 e^2 for an error |e| < 1, |e| - 0.5
            beyond.

    Returns:
        A scalar.

    Raises:
        InvalidInputError: the target is energies and forces, whose loss belongs to the force field.
    """
    if info.target == "multiclass":
        total = F.cross_entropy(output, labels, ignore_index=-1, reduction="sum")
        return total / (labels >= 0).sum().clamp(min=1)
    known, filled = ~labels.isnan(), labels.nan_to_num()
    if info.target == "multilabel":
        losses = F.binary_cross_entropy_with_logits(output, filled, reduction="none")
    elif info.target == "regression" and regression == "smooth_l1":
        losses = F.smooth_l1_loss(output, filled, reduction="none")
    elif info.target == "regression":
        losses = (output - filled).square()
    else:
        expected = "expected labels, classes or numbers (a force field has a loss of its own)"
        raise InvalidInputError(f"target: got {info.target!r}, {expected}")
    return torch.where(known, losses, 0.0).sum() / known.sum().clamp(min=1)


@dataclass(frozen=True)
class LabelScale:
    """Mean and standard deviation of the training labels of a regression.

    A network is trained on standardised labels, (label - mean) / deviation, so that units and
    offsets do not affect the loss and all labels have equal weight. After training the scale is
    folded into the head, which then predicts in the units of the labels.

    Attributes:
        mean, deviation: (L,) for a regression; scalars 0 and 1 for every other target.
    """

    mean: Tensor
    deviation: Tensor

    @classmethod
    def fit(cls, info: TaskInfo, labels: Iterable[Tensor]) -> Self:
        """Compute the scale from the training labels, batches of (n, L) with NaN where missing.

        A constant label gets deviation 1; a label without known values also gets mean 0.
        """
        if info.target != "regression":
            return cls(torch.zeros(()), torch.ones(()))
        wide = torch.cat(list(labels)).double()
        mean = wide.nanmean(0).nan_to_num()
        deviation = (wide - mean).square().nanmean(0).sqrt().nan_to_num()
        return cls(mean.float(), torch.where(deviation > 0, deviation, 1.0).float())

    def standardise(self, values: Tensor) -> Tensor:
        """Convert labels or predictions (n, L) to standard deviations from the mean; integer
        classes are returned unchanged."""
        if not values.is_floating_point():
            return values
        return (values - self.mean) / self.deviation

    def fold(self, head: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a linear head (`weight` (L, d), `bias` (L,)) trained on standardised labels as one
        that predicts in the units of the labels."""
        weight, bias = head["weight"], head["bias"]
        deviation, mean = self.deviation.to(weight), self.mean.to(weight)
        return {"weight": weight * deviation.unsqueeze(-1), "bias": bias * deviation + mean}

    def unfold(self, head: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a folded head as it was trained, predicting standardised labels."""
        weight, bias = head["weight"], head["bias"]
        deviation, mean = self.deviation.to(weight), self.mean.to(weight)
        return {"weight": weight / deviation.unsqueeze(-1), "bias": (bias - mean) / deviation}
