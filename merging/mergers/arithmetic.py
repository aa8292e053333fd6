"""Linear combinations of task vectors."""

from typing import Annotated

from pydantic import Field

from merging.mergers.base import MergeInputs, MergeResult, MergerOptions
from merging.mergers.task_vector import total


class TaskArithmeticOptions(MergerOptions):
    """Options of task arithmetic.

    Attributes:
        scaling: lambda, the factor of the sum of task vectors; the default is the G-Merging
            authors' for eight tasks of GCN supervised_contextpred.
    """

    scaling: Annotated[float, Field(gt=0)] = 0.11


def pretrained(inputs: MergeInputs, options: MergerOptions) -> MergeResult:
    """Return the pre-trained backbone: the base of the adapters in the paper's ablation "without
    merging"."""
    return _combine(inputs, 0.0)


def weight_average(inputs: MergeInputs, options: MergerOptions) -> MergeResult:
    """Average the fine-tuned weights, theta_pre + 1/K sum_k tau_k (Wortsman et al. 2022)."""
    return _combine(inputs, 1 / len(inputs.finetuned))


def task_arithmetic(inputs: MergeInputs, options: TaskArithmeticOptions) -> MergeResult:
    """Add the scaled sum of the task vectors, theta_pre + lambda sum_k tau_k (Ilharco et al.
    2023)."""
    return _combine(inputs, options.scaling)


def _combine(inputs: MergeInputs, scaling: float) -> MergeResult:
    return MergeResult(
        total(list(inputs.task_vectors().values())).apply(inputs.pretrained, scaling),
        record={"scaling": scaling},
    )
