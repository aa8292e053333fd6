"""TIES: trims task vectors, elects a sign per weight, and merges the entries of that sign."""

from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from merging.mergers.base import MergeInputs, MergeResult, MergerOptions, stack_states
from merging.mergers.task_vector import TaskVector


class TiesOptions(MergerOptions):
    """Options of TIES.

    Attributes:
        density: share of a task vector that is kept; the paper's 0.2.
        scaling: lambda, the factor of the merged task vector; the paper's 1 for when there is no
            data to tune it on.
        combine: the `mean` of the entries with the elected sign (the paper), or their `sum`
            (mergekit with its normalisation off).
    """

    density: Annotated[float, Field(gt=0, le=1)] = 0.2
    scaling: Annotated[float, Field(gt=0)] = 1.0
    combine: Literal["mean", "sum"] = "mean"


def ties(inputs: MergeInputs, options: TiesOptions) -> MergeResult:
    """Add the scaled mean of the trimmed task vectors' entries that have the elected sign.

    theta_pre + lambda tau, tau_j = mean of the trimmed tau_kj over the tasks k with the elected
    sign (Yadav et al. 2023, arXiv:2306.01708). The sign elected for a coordinate j is that of the
    sum over k of the trimmed tau_kj. Where the sum is 0, tau_j is 0; the authors' code takes the
    sign that most other coordinates have there.
    """
    return MergeResult(
        combine(inputs.task_vectors().values(), options).apply(inputs.pretrained, options.scaling),
        record=options.model_dump(),
    )


def combine(vectors: Iterable[TaskVector], options: TiesOptions) -> TaskVector:
    """Trim, elect signs and merge: the merged task vector before the scaling."""
    function = disjoint_mean if options.combine == "mean" else disjoint_sum
    trimmed = stack_states(trim(vector, options.density).delta for vector in vectors)
    return TaskVector(
        {key: function(deltas, elect_sign(deltas)) for key, deltas in trimmed.items()}
    )


def trim(vector: TaskVector, density: float) -> TaskVector:
    """Keep the largest entries by magnitude and set the rest to 0.

    The share `density` is of the whole vector, not of every tensor; at least one entry is kept, and
    all that equal the smallest one kept.
    """
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
    """Return the sign with the larger total magnitude, 0 for a draw: (K, *) -> (*)."""
    # In float64 a few float32 numbers add up without error, so that a draw does not depend on the
    # order of the tasks.
    return deltas.double().sum(0).sign().to(deltas.dtype)


def disjoint_sum(deltas: Tensor, sign: Tensor) -> Tensor:
    """Sum the entries that have the elected sign, 0 where none has: (K, *), (*) -> (*)."""
    return sign * (deltas * sign).clamp(min=0).sum(0)


def disjoint_mean(deltas: Tensor, sign: Tensor) -> Tensor:
    """Average the entries that have the elected sign, 0 where none has: (K, *), (*) -> (*)."""
    return disjoint_sum(deltas, sign) / (deltas * sign > 0).sum(0).clamp(min=1)
