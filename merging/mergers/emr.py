"""EMR-Merging: elects one unified task vector, then masks and rescales it per task."""

from collections.abc import Iterable

import torch
from torch import Tensor

from merging.mergers.base import MergeInputs, MergeResult, MergerOptions, stack_states
from merging.mergers.task_vector import TaskVector
from merging.mergers.ties import elect_sign


def emr(inputs: MergeInputs, options: MergerOptions) -> MergeResult:
    """Give every task a masked and rescaled copy of the unified task vector.

    theta_k = theta_pre + lambda_k M_k * tau_uni (Huang et al. 2024, arXiv:2405.17461), with

        tau_uni  = sign(sum_k tau_k) * the largest |tau_k| among the tasks with that sign
        M_k      = [tau_k * tau_uni > 0]
        lambda_k = sum |tau_k| / sum |M_k * tau_uni|, over the whole vector

    `backbone` of the result is theta_pre + tau_uni; a task adds to it one bit per weight and one
    number. The authors' code sums means of parameter tensors in place of their sums, so that there
    a bias counts as much as a matrix.
    """
    vectors = inputs.task_vectors()
    unified = unified_vector(vectors.values())
    masked = {task: mask(vector, unified) for task, vector in vectors.items()}
    rescalers = {task: rescaler(vector, masked[task]) for task, vector in vectors.items()}
    by_task = {task: masked[task].apply(inputs.pretrained, rescalers[task]) for task in vectors}
    return MergeResult(unified.apply(inputs.pretrained), by_task, {"rescalers": rescalers})


def unified_vector(vectors: Iterable[TaskVector]) -> TaskVector:
    """Compute tau_uni: per weight the elected sign times the largest magnitude with that sign; 0
    where the task vectors sum to 0."""
    return TaskVector(
        {
            key: _unify(deltas)
            for key, deltas in stack_states(vector.delta for vector in vectors).items()
        }
    )


def mask(vector: TaskVector, unified: TaskVector) -> TaskVector:
    """Compute M_k * tau_uni: the unified vector where the task has its sign, 0 elsewhere."""
    return TaskVector(
        {
            key: torch.where(vector.delta[key] * delta > 0, delta, 0)
            for key, delta in unified.delta.items()
        }
    )


def rescaler(vector: TaskVector, masked: TaskVector) -> float:
    """Compute lambda_k, the ratio of the L1 norms of a task vector and of its masked unified
    vector; 1 where the latter is 0."""
    norm = _l1(masked)
    return _l1(vector) / norm if norm else 1.0


def _unify(deltas: Tensor) -> Tensor:
    sign = elect_sign(deltas)
    return sign * (deltas * sign).clamp(min=0).amax(0)


def _l1(vector: TaskVector) -> float:
    return sum(float(delta.abs().sum(dtype=torch.float64)) for delta in vector.delta.values())
