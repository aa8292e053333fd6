"""How good answers are, by what they are: accuracy, ROC-AUC or mean absolute error."""

from collections.abc import Callable

import torch
from torch import Tensor

from merging.data.task_data import Part
from merging.families.graphs import TaskData
from merging.training.metrics import METRICS, metrics
from models.data.batch import GraphBatch


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
    """The metric that stands for a task (`merging.training.metrics.METRICS`), on a part."""
    labels, outputs = predict(forward, data, part)
    return metrics(outputs.numpy(), labels.numpy(), data.info)[METRICS[data.target]]
