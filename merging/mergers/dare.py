"""DARE: drops most of every task vector at random and rescales the rest, before another merger."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from merging.mergers import ties
from merging.mergers.arithmetic import TaskArithmeticOptions
from merging.mergers.base import MergeInputs, MergeResult
from merging.mergers.task_vector import TaskVector, total

DropRate = Annotated[float, Field(ge=0, lt=1)]
Rescale = Literal["inverse", "norm"]


class DareOptions(TaskArithmeticOptions):
    """Options of DARE with task arithmetic, besides those of task arithmetic.

    Attributes:
        drop_rate: p; the paper searches 0.1 to 0.9 and finds that 0.9 can mostly be dropped.
        rescale: the rest is divided by 1 - p (`inverse`, the paper), or scaled to the L1 norm that
            the parameter had (`norm`, as mergekit does).
    """

    drop_rate: DropRate = 0.9
    rescale: Rescale = "inverse"


class DareTiesOptions(ties.TiesOptions):
    """Options of DARE with TIES, besides those of TIES. mergekit's `dare_ties` does not trim:
    density 1.

    Attributes:
        drop_rate, rescale: as in `DareOptions`.
    """

    drop_rate: DropRate = 0.9
    rescale: Rescale = "inverse"


def dare(inputs: MergeInputs, options: DareOptions) -> MergeResult:
    """Add the scaled sum of randomly thinned task vectors.

    theta_pre + lambda sum_k m_k * tau_k / (1 - p), with m_k ~ Bernoulli(1 - p) drawn for every
    entry (Yu et al. 2023, arXiv:2311.03099).
    """
    return MergeResult(
        total(_dropped(inputs, options)).apply(inputs.pretrained, options.scaling),
        record=options.model_dump(),
    )


def dare_ties(inputs: MergeInputs, options: DareTiesOptions) -> MergeResult:
    """Apply TIES to randomly thinned task vectors m_k * tau_k / (1 - p), m_k as in `dare` (Yu et
    al. 2023, arXiv:2311.03099)."""
    return MergeResult(
        ties.combine(_dropped(inputs, options), options).apply(inputs.pretrained, options.scaling),
        record=options.model_dump(),
    )


def drop(delta: Tensor, drop_rate: float, rescale: Rescale, generator: torch.Generator) -> Tensor:
    """Set every entry to 0 with probability `drop_rate` and rescale the rest: (*) -> (*). A
    parameter of which nothing is left is 0."""
    chosen = torch.rand(delta.shape, generator=generator).to(delta.device) >= drop_rate
    kept = torch.where(chosen, delta, 0)
    if rescale == "inverse":
        return kept / (1 - drop_rate)
    mass = kept.abs().sum()
    return torch.where(mass > 0, kept * (delta.abs().sum() / mass), 0)


def _dropped(inputs: MergeInputs, options: DareOptions | DareTiesOptions) -> list[TaskVector]:
    return [
        TaskVector(
            {
                key: drop(delta, options.drop_rate, options.rescale, inputs.generator(task, key))
                for key, delta in vector.delta.items()
            }
        )
        for task, vector in inputs.task_vectors().items()
    ]
