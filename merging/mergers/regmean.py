"""RegMean: merges every linear layer by least squares on the outputs of the models' layers."""

from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from merging.mergers.base import (
    Calibration,
    MergeInputs,
    MergeResult,
    MergerOptions,
    Network,
    stack_states,
)
from merging.mergers.task_vector import TaskVector


class RegMeanOptions(MergerOptions):
    """Options of RegMean.

    Attributes:
        alpha: factor of the off-diagonal entries of the Gram matrices, against overfitting to the
            calibration molecules; the paper's 0.9.
        ridge: added to the diagonal of every Gram matrix: in directions that no model's inputs
            span, the weights become the plain mean.
    """

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.9
    ridge: Annotated[float, Field(gt=0)] = 1e-6


def regmean(inputs: MergeInputs, options: RegMeanOptions) -> MergeResult:
    """Merge every linear layer by least squares, and average everything else, biases too.

    W = (sum_k G_k)^-1 sum_k G_k W_k (Jin et al. 2023, arXiv:2212.09849), where G_k is the mean of
    x^T x over the node vectors x (1, d) that enter the layer in model k, its off-diagonal entries
    scaled by alpha. A mean and not a sum, as in the authors' code, so that tasks count alike
    whatever the size of their molecules.
    """
    deltas = stack_states(vector.delta for vector in inputs.task_vectors().values())
    merged = {key: delta.mean(0) for key, delta in deltas.items()}
    grams = stack_states(
        input_grams(inputs.network(finetuned), inputs.calibration[task])
        for task, finetuned in inputs.finetuned.items()
    )
    for name, gram in grams.items():
        key = f"{name}.weight"
        merged[key] = least_squares_weight(shrunk(gram, options), deltas[key])
    return MergeResult(TaskVector(merged).apply(inputs.pretrained), record=options.model_dump())


@torch.no_grad()
def input_grams(network: Network, calibration: Calibration) -> dict[str, Tensor]:
    """Compute the mean of x^T x over the calibration nodes, for the inputs of every linear layer.

    Returns:
        The Gram matrix (d_in, d_in) float64 by name of the layer.
    """
    grams: dict[str, Tensor] = {}
    rows = torch.empty(0, dtype=torch.bool)

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def add(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            x = arguments[0][rows].double()
            grams[name] = grams.get(name, 0) + x.T @ x

        return add

    for name, module in network.named_modules():
        if type(module).__name__ == "Linear":  # torch's, and PyG's, which is none of torch's
            module.register_forward_pre_hook(watch(name))
    count = 0
    for number, batch in enumerate(calibration.batches):
        rows = calibration.node_mask(number)
        network(batch)
        count += int(rows.sum())
    return {name: gram / count for name, gram in grams.items()}


def least_squares_weight(grams: Tensor, weights: Tensor) -> Tensor:
    """Solve for the weight whose outputs are nearest to those of all models in least squares.

    Args:
        grams: (K, d_in, d_in) float64, of the inputs of each model's layer.
        weights: (K, d_out, d_in).

    Returns:
        (d_out, d_in), in the dtype of `weights`.
    """
    targets = grams @ weights.double().mT
    solution: Tensor = torch.linalg.solve(grams.sum(0), targets.sum(0))
    return solution.T.to(weights.dtype)


def shrunk(grams: Tensor, options: RegMeanOptions) -> Tensor:
    """Scale the off-diagonal entries of Gram matrices, (K, d, d), and add the ridge."""
    diagonal = grams.diagonal(dim1=1, dim2=2)
    return options.alpha * grams + torch.diag_embed((1 - options.alpha) * diagonal + options.ridge)
