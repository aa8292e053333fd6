"""Segment reductions over an index: the only scatter code in the project.

Every function reduces the rows of `values` (E, *B) that share the same `index` (E,) into `size`
rows. Rows may come in any order. An index with no rows gives the neutral element: 0 for sums, -inf
for maxima and log-sums.
"""

import torch
from torch import Tensor


def segment_sum(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Sum of the rows of each segment: (E, *B) -> (size, *B)."""
    return values.new_zeros((size, *values.shape[1:])).index_add_(0, index, values)


def segment_count(index: Tensor, size: int) -> Tensor:
    """Number of rows in each segment, (size,) int64."""
    return torch.bincount(index, minlength=size)


def segment_mean(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Mean of the rows of each segment, 0 where a segment is empty: (E, *B) -> (size, *B)."""
    count = segment_count(index, size).clamp(min=1).to(values.dtype)
    return segment_sum(values, index, size) / count.view(-1, *[1] * (values.dim() - 1))


def segment_max(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Maximum of each segment, -inf where a segment is empty: (E, *B) -> (size, *B)."""
    out = values.new_full((size, *values.shape[1:]), float("-inf"))
    # scatter_reduce with an expanded index, not index_reduce: the same numbers, but whole rows at a
    # time.
    return out.scatter_reduce_(
        0, index.view(-1, *[1] * (values.dim() - 1)).expand_as(values), values, "amax"
    )


def segment_logsumexp(values: Tensor, index: Tensor, size: int) -> Tensor:
    """log(sum(exp(values))) of each segment, -inf where a segment is empty: (E, *B) -> (size,
    *B)."""
    # The largest value is taken out first so that no exponential overflows; an empty or all -inf
    # segment must not become inf - inf.
    shift = segment_max(values.detach(), index, size).nan_to_num(nan=0.0, neginf=0.0)
    # In place on the gathered shift: fresh memory for each (E, *B) step would cost more than the
    # step.
    return (
        segment_sum((-shift).index_select(0, index).add_(values).exp_(), index, size).log() + shift
    )


def segment_softmax(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Softmax over the rows of each segment: (E, *B) -> (E, *B)."""
    return (values - segment_logsumexp(values, index, size).index_select(0, index)).exp()
