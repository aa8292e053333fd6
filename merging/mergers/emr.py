"""EMR-Merging: elect one vector for all tasks; mask and rescale it for each."""

from collections.abc import Iterable

import torch
from torch import Tensor

from merging.mergers.base import MergeInputs, MergeResult, MergerOptions, stacked
from merging.mergers.task_vector import TaskVector
from merging.mergers.ties import elect_sign


def emr(inputs: MergeInputs, options: MergerOptions) -> MergeResult:
    """theta_k = theta_pre + lambda_k M_k * tau_uni for each task (Huang et al. 2024,
    arXiv:2405.17461).

        tau_uni  = sign(sum_k tau_k) * the largest |tau_k| among the tasks with that sign
        M_k      = [tau_k * tau_uni > 0]
        lambda_k = sum |tau_k| / sum |M_k * tau_uni|, over the whole vector

    Besides `backbone`, which is theta_pre + tau_uni, a task needs a bit per weight and one number.
    The authors' code adds up means of parameter tensors in place of sums, so that a bias counts as
    much as a matrix.
    """
    vectors = inputs.vectors()
    unified = unified_vector(vectors.values())
    masked = {task: mask(vector, unified) for task, vector in vectors.items()}
    rescalers = {task: rescaler(vector, masked[task]) for task, vector in vectors.items()}
    by_task = {task: masked[task].apply(inputs.pretrained, rescalers[task]) for task in vectors}
    return MergeResult(unified.apply(inputs.pretrained), by_task, {"rescalers": rescalers})


def unified_vector(vectors: Iterable[TaskVector]) -> TaskVector:
    """tau_uni; 0 where the sum of the task vectors is."""
    return TaskVector(
        {key: _unify(deltas) for key, deltas in stacked(vector.delta for vector in vectors).items()}
    )


def mask(vector: TaskVector, unified: TaskVector) -> TaskVector:
    """M_k * tau_uni: the unified vector where the task agrees with its sign, 0 elsewhere."""
    return TaskVector(
        {
            key: torch.where(vector.delta[key] * delta > 0, delta, 0)
            for key, delta in unified.delta.items()
        }
    )


def rescaler(vector: TaskVector, masked: TaskVector) -> float:
    """lambda_k, which gives the masked vector the L1 norm of the task's own; 1 where there is
    nothing to rescale."""
    norm = _l1(masked)
    return _l1(vector) / norm if norm else 1.0


def _unify(deltas: Tensor) -> Tensor:
    sign = elect_sign(deltas)
    return sign * (deltas * sign).clamp(min=0).amax(0)


def _l1(vector: TaskVector) -> float:
    return sum(float(delta.abs().sum(dtype=torch.float64)) for delta in vector.delta.values())
