"""merging.training.loop.losses"""

import torch
from torch import Tensor
from torch.nn import functional as F

from merging.data.task_data import AnswerTask
from merging.families.graphs import TaskData
from models.task import Target


def masked_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy over the labels that are known: logits and labels (G, C), NaN where
    missing -> scalar."""
    known = ~labels.isnan()
    losses = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
    return torch.where(known, losses, 0.0).sum() / known.sum().clamp(min=1)


def label_scale(data: TaskData) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of the known training labels of a regression, 1 for a
    constant label; 0 and 1 for all other targets, (1,)."""
    if not isinstance(data, AnswerTask) or data.target != "regression":
        return torch.zeros(1), torch.ones(1)
    labels = data.labels[data.split.train].double()
    mean = labels.nanmean(0).nan_to_num()
    deviation = (labels - mean).square().nanmean(0).sqrt().nan_to_num()
    return mean.float(), torch.where(deviation > 0, deviation, 1.0).float()


def known_loss(target: Target, logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over what is known of the cross-entropy of classes (n,), the binary one of labels (n,
    C), or the squared difference of numbers (n, C)."""
    if target == "multiclass":
        known = labels >= 0
        return F.cross_entropy(
            logits, labels, ignore_index=-1, reduction="sum"
        ) / known.sum().clamp(min=1)
    if target == "multilabel":
        return masked_loss(logits, labels)
    known = ~labels.isnan()
    return torch.where(
        known, (logits - labels.nan_to_num()).square(), 0.0
    ).sum() / known.sum().clamp(min=1)
