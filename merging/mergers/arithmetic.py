"""Linear combinations of task vectors."""

from merging.mergers.contract import MergeInputs, MergeResult
from merging.task_vector import TaskVector, total
from models.errors import InvalidInputError

TASK_ARITHMETIC_SCALING = 0.11
"""The G-Merging authors' lambda for eight task vectors of GCN supervised_contextpred."""


def weight_average(inputs: MergeInputs) -> MergeResult:
    """theta_pre + 1/K sum_k tau_k, the mean of the fine-tuned weights (Wortsman et al. 2022)."""
    if inputs.scaling is not None:
        raise InvalidInputError(f"got scaling {inputs.scaling} for weight averaging, expected none (it is 1 / number of tasks)")
    return _combine(inputs, 1 / len(inputs.finetuned))


def task_arithmetic(inputs: MergeInputs) -> MergeResult:
    """theta_pre + lambda sum_k tau_k (Ilharco et al. 2023)."""
    return _combine(inputs, TASK_ARITHMETIC_SCALING if inputs.scaling is None else inputs.scaling)


def _combine(inputs: MergeInputs, scaling: float) -> MergeResult:
    vectors = [TaskVector.between(inputs.pretrained, finetuned) for finetuned in inputs.finetuned.values()]
    return MergeResult(total(vectors).apply(inputs.pretrained, scaling), scaling)
