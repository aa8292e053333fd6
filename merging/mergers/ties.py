"""TIES: trim, elect sign, and merge only what agrees."""

from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from merging.mergers.base import MergeInputs, MergeResult, MergerOptions, stacked
from merging.mergers.task_vector import TaskVector


class TiesOptions(MergerOptions):
    """Options of TIES.

    Attributes:
        density: share of a task vector that is kept; the paper's 0.2.
        scaling: lambda, on the merged task vector; the paper's 1 for when there is nothing to tune
            it on.
        combine: of the values that agree, their `mean` (the paper) or their `sum` (mergekit with
            its normalisation off).
    """

    density: Annotated[float, Field(gt=0, le=1)] = 0.2
    scaling: Annotated[float, Field(gt=0)] = 1.0
    combine: Literal["mean", "sum"] = "mean"


def ties(inputs: MergeInputs, options: TiesOptions) -> MergeResult:
    """theta_pre + lambda tau, tau_j = mean of the trimmed tau_kj over the tasks k that have the
    elected sign (Yadav et al. 2023, arXiv:2306.01708).

    The sign elected for a coordinate j is that of sum_k tau_kj, trimmed. Where the sum is 0 no task
    agrees and tau_j = 0; the authors' code takes the sign that most other coordinates have there.
    """
    return MergeResult(
        combine(inputs.vectors().values(), options).apply(inputs.pretrained, options.scaling),
        record=options.model_dump(),
    )


def combine(vectors: Iterable[TaskVector], options: TiesOptions) -> TaskVector:
    """The three steps, without the scaling."""
    function = disjoint_mean if options.combine == "mean" else disjoint_sum
    trimmed = stacked(trim(vector, options.density).delta for vector in vectors)
    return TaskVector(
        {key: function(deltas, elect_sign(deltas)) for key, deltas in trimmed.items()}
    )


def trim(vector: TaskVector, density: float) -> TaskVector:
    """The largest share `density` of the whole vector by magnitude (at least one number, and all
    that equal the smallest kept); 0 elsewhere."""
    magnitudes = torch.cat([delta.abs().flatten() for delta in vector.delta.values()])
    kept = max(1, round(density * len(magnitudes)))
    threshold = magnitudes.kthvalue(len(magnitudes) - kept + 1).values
    return TaskVector(
        {
            key: torch.where(delta.abs() >= threshold, delta, 0)
            for key, delta in vector.delta.items()
        }
    )


def elect_sign(deltas: Tensor) -> Tensor:
    """The sign with the larger total magnitude, 0 for a draw: (K, *) -> (*)."""
    # In float64 a few float32 numbers add up without error: whether there is a draw does not depend
    # on the order of tasks.
    return deltas.double().sum(0).sign().to(deltas.dtype)


def disjoint_sum(deltas: Tensor, sign: Tensor) -> Tensor:
    """Sum of what has the elected sign, 0 where nothing has: (K, *), (*) -> (*)."""
    return sign * (deltas * sign).clamp(min=0).sum(0)


def disjoint_mean(deltas: Tensor, sign: Tensor) -> Tensor:
    """Mean of what has the elected sign, 0 where nothing has: (K, *), (*) -> (*)."""
    return disjoint_sum(deltas, sign) / (deltas * sign > 0).sum(0).clamp(min=1)
