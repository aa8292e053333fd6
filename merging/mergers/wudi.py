"""WUDI-Merging: the merged matrices that disturb every task least, with the rows of the task
vectors in place of the tasks' inputs."""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from merging.mergers.base import MergeInputs, MergeResult, MergerOptions
from merging.mergers.spectral import merged_vector


class WudiOptions(MergerOptions):
    """Options of WUDI-Merging.

    Attributes:
        solver: `adam`, the paper's, from the sum of the task vectors; or `closed_form`, the
            minimum itself.
        steps, learning_rate: of Adam. The paper's 1e-5 is for task vectors of vision transformers,
            whose entries are about as small.
    """

    solver: Literal["adam", "closed_form"] = "adam"
    steps: Annotated[int, Field(ge=1)] = 300
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5


def wudi(inputs: MergeInputs, options: WudiOptions) -> MergeResult:
    """Minimise the interference between the tasks, without data.

    Every matrix of the merged task vector minimises
    sum_k ||(tau - tau_k) tau_k^T||^2 / ||tau_k||^2 (Cheng et al. 2025, arXiv:2503.08099).
    All other parameters are averaged.
    """
    solve = closed_form if options.solver == "closed_form" else _adam(options)
    backbone = merged_vector(inputs, solve).apply(inputs.pretrained)
    return MergeResult(backbone, record=options.model_dump())


def interference(tau: Tensor, deltas: Tensor) -> Tensor:
    """Compute what a merged matrix does to the tasks: (m, n), (K, m, n) -> ().

    The matrix of a task that is 0 adds nothing.
    """
    norms = deltas.square().sum((1, 2))
    disturbed = ((tau - deltas) @ deltas.mT).square().sum((1, 2))
    return (disturbed / _divisors(norms)).sum()


def closed_form(deltas: Tensor) -> Tensor:
    """Return the matrix of least norm at the minimum of the interference: (K, m, n) -> (m, n).

    tau sum_k G_k = sum_k tau_k G_k with G_k = tau_k^T tau_k / ||tau_k||^2. Gradient descent from
    the sum of the task vectors ends there too, as its rows are in the range of sum_k G_k.
    """
    norms = deltas.square().sum((1, 2), keepdim=True)
    grams = deltas.mT @ (deltas / _divisors(norms))
    tau: Tensor = (deltas @ grams).sum(0) @ torch.linalg.pinv(grams.sum(0), hermitian=True)
    return tau


def _divisors(norms: Tensor) -> Tensor:
    """Return what to divide by: 1 for a norm of 0, where there is nothing to divide."""
    return torch.where(norms > 0, norms, 1)


def _adam(options: WudiOptions) -> Callable[[Tensor], Tensor]:
    def solve(deltas: Tensor) -> Tensor:
        tau = deltas.sum(0).requires_grad_()
        optimizer = torch.optim.Adam([tau], lr=options.learning_rate)
        for _ in range(options.steps):
            optimizer.zero_grad()
            interference(tau, deltas).backward()
            optimizer.step()
        return tau.detach()

    return solve
