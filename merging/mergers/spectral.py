"""Mergers by the singular values of the matrices of task vectors: TSV-Merge and Iso-C."""

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from merging.mergers.base import MergeInputs, MergeResult, MergerOptions, stack_states
from merging.mergers.task_vector import TaskVector


class SpectralOptions(MergerOptions):
    """Options of TSV-Merge and of Iso-C.

    Attributes:
        scaling: alpha, the factor of the merged task vector. TSV-Merge is published with 1; Iso-C
            with a value that is tuned on validation data.
    """

    scaling: Annotated[float, Field(gt=0)] = 1.0


def tsv_merge(inputs: MergeInputs, options: SpectralOptions) -> MergeResult:
    """Merge the main singular vectors of the tasks after making them orthogonal to each other.

    Of every matrix of K task vectors the first 1/K of the singular vectors are kept, at least one;
    those of all tasks side by side, U and V, are replaced by the nearest orthogonal matrices, and
    the merged matrix is U_orth S V_orth^T (Gargiulo et al. 2025, arXiv:2412.00081, Algorithm 1).
    All other parameters are averaged.
    """
    return _merged(inputs, options, tsv_matrix)


def iso_c(inputs: MergeInputs, options: SpectralOptions) -> MergeResult:
    """Sum the task vectors and give all singular values of every matrix their mean.

    (Marczak et al. 2025, arXiv:2502.04959, Iso-C.) All other parameters are averaged.
    """
    return _merged(inputs, options, lambda deltas: isotropic(deltas.sum(0)))


def merged_vector(inputs: MergeInputs, merge_matrices: Callable[[Tensor], Tensor]) -> TaskVector:
    """Merge the task vectors, matrix by matrix, by a function (K, m, n) -> (m, n) in float64."""
    stacked = stack_states(vector.delta for vector in inputs.task_vectors().values())
    return TaskVector(
        {key: average_vectors(deltas, merge_matrices) for key, deltas in stacked.items()}
    )


def average_vectors(deltas: Tensor, merge_matrices: Callable[[Tensor], Tensor]) -> Tensor:
    """Merge matrices by the function, in float64, and average what is no matrix: (K, *) -> (*)."""
    if deltas.dim() != 3:
        return deltas.mean(0)
    return merge_matrices(deltas.double()).to(deltas.dtype)


def tsv_matrix(deltas: Tensor) -> Tensor:
    """Merge matrices by their singular vectors: (K, m, n) -> (m, n)."""
    u, s, vh = torch.linalg.svd(deltas, full_matrices=False)
    kept = max(1, s.shape[1] // len(deltas))
    left = torch.cat(list(u[:, :, :kept]), dim=1)
    right = torch.cat(list(vh[:, :kept]), dim=0)
    values = s[:, :kept].flatten()
    merged: Tensor = (nearest_orthogonal(left) * values) @ nearest_orthogonal(right)
    return merged


def nearest_orthogonal(matrix: Tensor) -> Tensor:
    """Return the matrix with orthonormal columns, or rows if it is wide, that is nearest in the
    Frobenius norm (orthogonal Procrustes): (m, n) -> (m, n)."""
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    nearest: Tensor = u @ vh
    return nearest


def isotropic(matrix: Tensor) -> Tensor:
    """Replace the singular values by their mean: (m, n) -> (m, n).

    Those that are 0 up to rounding stay 0 and do not count: their directions belong to no task,
    such as the rows of a table for atoms that no training set has.
    """
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    rounding = s.max() * max(matrix.shape) * torch.finfo(s.dtype).eps
    found = s > rounding
    mean = s[found].mean() if bool(found.any()) else s.new_zeros(())
    flat: Tensor = (u * torch.where(found, mean, 0)) @ vh
    return flat


def _merged(
    inputs: MergeInputs, options: SpectralOptions, merge_matrices: Callable[[Tensor], Tensor]
) -> MergeResult:
    backbone = merged_vector(inputs, merge_matrices).apply(inputs.pretrained, options.scaling)
    return MergeResult(backbone, record=options.model_dump())
