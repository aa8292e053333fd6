"""Segment reductions: the rows of `values` (E, *B) that share an entry of `index` (E,) become one
row.

Rows may come in any order. A segment without rows gives the neutral element: 0 for sums, -inf for
maxima and log-sums. This is the only scatter code of the project.
"""

import torch
from torch import Tensor


def segment_sum(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Sum the rows of each segment: (E, *B) -> (size, *B)."""
    return values.new_zeros((size, *values.shape[1:])).index_add_(0, index, values)


def segment_count(index: Tensor, size: int) -> Tensor:
    """Count the rows of each segment: (size,) int64."""
    return torch.bincount(index, minlength=size)


def segment_mean(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Average the rows of each segment, 0 for an empty one: (E, *B) -> (size, *B)."""
    count = segment_count(index, size).clamp(min=1).to(values.dtype)
    return segment_sum(values, index, size) / count.view(-1, *[1] * (values.dim() - 1))


def segment_max(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Take the maximum over the rows of each segment, -inf for an empty one: (E, *B) -> (size,
    *B).
    """
    out = values.new_full((size, *values.shape[1:]), float("-inf"))
    # scatter_reduce with an expanded index gives the same as index_reduce, whole rows at a time.
    return out.scatter_reduce_(
        0, index.view(-1, *[1] * (values.dim() - 1)).expand_as(values), values, "amax"
    )


def segment_logsumexp(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Compute log(sum(exp)) over the rows of each segment, -inf for an empty one: (E, *B) -> (size,
    *B).
    """
    # Shifted by the maximum so that no exponential overflows; nan_to_num keeps an empty or all -inf
    # segment from becoming inf - inf.
    shift = segment_max(values.detach(), index, size).nan_to_num(nan=0.0, neginf=0.0)
    # In place on the gathered shift: allocating (E, *B) for every step costs more than the step.
    return (
        segment_sum((-shift).index_select(0, index).add_(values).exp_(), index, size).log() + shift
    )


def segment_softmax(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Compute the softmax over the rows of each segment: (E, *B) -> (E, *B)."""
    return (values - segment_logsumexp(values, index, size).index_select(0, index)).exp()
