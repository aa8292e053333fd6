"""Residual: the average of the models, and by task a low-rank approximation of what averaging took
away. It needs no data."""

import math

import torch
from torch import Tensor

from merging.config.base import Count
from merging.mergers.arithmetic import weight_average
from merging.mergers.base import MergeInputs, MergeResult, MergerOptions
from merging.mergers.task_vector import TaskVector


class ResidualOptions(MergerOptions):
    """Options of `residual`.

    Attributes:
        rank: rank r of the approximation of every matrix.
    """

    rank: Count = 30


def residual(inputs: MergeInputs, options: ResidualOptions) -> MergeResult:
    """Give every task the average and a low-rank approximation of its difference to it.

    theta_k = theta_avg + U_r S_r V_r^T, the truncated singular value decomposition of theta_k -
    theta_avg, matrix by matrix: the best approximation of rank r (Eckart and Young 1936), as
    mergekit extracts a LoRA from a fine-tuned model. What r (m + n) numbers would not make smaller
    is kept whole: biases, BatchNorm weights, attention vectors and small embedding tables.

    `backbone` of the result is theta_avg; `numbers` of its record counts what a task adds to it.
    """
    average = weight_average(inputs, MergerOptions()).backbone
    differences = {
        task: TaskVector.between(average, state) for task, state in inputs.finetuned.items()
    }
    deltas = next(iter(differences.values())).delta.values()
    numbers = sum(numbers_of(delta.shape, options.rank) for delta in deltas)
    by_task = {
        task: TaskVector(
            {key: low_rank(delta, options.rank) for key, delta in difference.delta.items()}
        ).apply(average)
        for task, difference in differences.items()
    }
    return MergeResult(average, by_task, {"rank": options.rank, "numbers": numbers})


def numbers_of(shape: torch.Size, rank: int) -> int:
    """Return how many numbers the approximation of a tensor of this shape has: r (m + n) for a
    matrix (m, n), with S multiplied into U; m n for what is kept whole."""
    whole = math.prod(shape)
    return min(whole, rank * sum(shape)) if len(shape) == 2 else whole


def low_rank(delta: Tensor, rank: int) -> Tensor:
    """Approximate a tensor with rank r in float64; return it itself where that would not save
    numbers (`numbers_of`)."""
    if numbers_of(delta.shape, rank) == delta.numel():
        return delta
    left, right = low_rank_factors(delta, rank)
    return (left @ right).to(delta.dtype)


def low_rank_factors(delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the factors of the best approximation of rank r of a matrix (m, n), in float64: (m, r)
    with the singular values, and (r, n)."""
    left, values, right = torch.linalg.svd(delta.double(), full_matrices=False)
    return left[:, :rank] * values[:rank], right[:rank]
