"""Fisher merging: the mean of the models, every weight weighted by its Fisher information."""

from collections.abc import Iterator, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from merging.mergers.base import (
    Calibration,
    MergeInputs,
    MergeResult,
    MergerOptions,
    Network,
    stack_states,
)
from merging.mergers.task_vector import TaskVector
from models.data.batch import GraphBatch
from models.task import Target


class FisherOptions(MergerOptions):
    """Options of Fisher merging.

    Attributes:
        normalise: divide every task's Fisher information by its L2 norm, as the authors' code does.
            Without it a task of many labels decides nearly alone: on the eight MoleculeNet tasks
            the norms differ by a factor of 700 (ToxCast, MUV).
        floor: added to every Fisher value, as a fraction of their mean: weights with no Fisher
            information in any model become the plain mean. The authors' code adds 1e-6 for one
            model only; here it is relative, because the scale of the gradients is arbitrary.
    """

    normalise: bool = True
    floor: Annotated[float, Field(gt=0)] = 1e-6


def fisher(inputs: MergeInputs, options: FisherOptions) -> MergeResult:
    """Average the models' weights, each weighted by its diagonal Fisher information.

    theta_j = sum_k F_kj theta_kj / sum_k F_kj (Matena and Raffel 2022, arXiv:2111.09832).

    Raises:
        InvalidInputError: a task answers for nodes.
    """
    inputs.require_graph_labels("fisher")
    information = {}
    for task in tqdm(inputs.finetuned, desc="Fisher information", unit="task"):
        information[task] = diagonal_fisher(
            inputs.network(inputs.finetuned[task]), inputs.calibration[task], inputs.generator(task)
        )
    norms = {task: _norm(squares) for task, squares in information.items()}
    deltas = {task: vector.delta for task, vector in inputs.task_vectors().items()}
    merged = TaskVector(fisher_mean(deltas, information, options))
    return MergeResult(
        merged.apply(inputs.pretrained), record={**options.model_dump(), "fisher_norms": norms}
    )


def fisher_mean(
    weights: Mapping[str, dict[str, Tensor]],
    information: Mapping[str, dict[str, Tensor]],
    options: FisherOptions,
) -> dict[str, Tensor]:
    """Average weights by name, each task's by its Fisher information.

    Args:
        weights: by task; or their differences from common weights.
        information: the diagonal of the Fisher information, by task.
        options: whether it is normalised, and its floor.
    """
    if options.normalise:
        norms = {task: _norm(squares) or 1.0 for task, squares in information.items()}
        information = {
            task: {key: value / norms[task] for key, value in squares.items()}
            for task, squares in information.items()
        }
    importance = stack_states(information.values())
    floor = options.floor * _mean(importance)
    return {
        key: _weighted_mean(values, importance[key] + floor).to(values.dtype)
        for key, values in stack_states(weights.values()).items()
    }


def diagonal_fisher(
    network: Network, calibration: Calibration, generator: torch.Generator
) -> dict[str, Tensor]:
    """Estimate the diagonal of a model's Fisher information on its calibration molecules.

    F_j = mean over molecules of E_y (d log p(y) / d theta_j)^2, with y distributed as the model
    predicts. With independent labels the expectation is sum_c p_c (1 - p_c) (d z_c / d theta_j)^2.
    It is estimated by one gradient per molecule, that of sum_c s_c sqrt(p_c (1 - p_c)) z_c with
    random signs s_c: exact for one label, unbiased for more. Drawing y has the same expectation,
    but a rare label would then contribute through the few molecules for which it is drawn. With
    classes it is the gradient of sum_c s_c sqrt(p_c) log p_c, with numbers (a normal distribution
    of standard deviation 1) that of sum_c s_c z_c.

    Args:
        network: the fine-tuned backbone, in evaluation mode.
        calibration: molecules and the head of the task.
        generator: source of the random signs.

    Returns:
        F by parameter name, float64, each in the shape of its parameter.
    """
    parameters = dict(network.named_parameters())
    squares = {
        key: torch.zeros_like(value, dtype=torch.float64) for key, value in parameters.items()
    }
    for batch in calibration.batches:
        for molecule in single_graphs(batch):
            logits = calibration.logits(network(molecule), molecule)
            signs = torch.randint(2, logits.shape, generator=generator).to(logits) * 2 - 1
            weighted = signs * _square_roots(logits, calibration.target)
            gradients = torch.autograd.grad(weighted.sum(), list(parameters.values()))
            for total, gradient in zip(squares.values(), gradients, strict=True):
                total += gradient.double().square()
    count = sum(batch.num_graphs for batch in calibration.batches)
    return {key: total / count for key, total in squares.items()}


def _square_roots(logits: Tensor, target: Target) -> Tensor:
    """(G, C) numbers whose gradients' squares add up to the Fisher information of G answers."""
    if target == "multilabel":
        return (logits.sigmoid() * (-logits).sigmoid()).sqrt().detach() * logits
    if target == "multiclass":
        return logits.softmax(-1).sqrt().detach() * logits.log_softmax(-1)
    return logits


def single_graphs(batch: GraphBatch) -> Iterator[GraphBatch]:
    """Yield every graph of a batch as a batch of one graph."""
    edge_graph = batch.batch[batch.edge_index[0]]
    for graph in range(batch.num_graphs):
        nodes = (batch.batch == graph).nonzero().squeeze(1)
        edges = edge_graph == graph
        yield GraphBatch(
            batch.x[nodes],
            batch.edge_index[:, edges] - nodes[0],
            batch.edge_attr[edges],
            torch.zeros_like(nodes),
            1,
        )


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    return (weights * values).sum(0) / weights.sum(0)


def _norm(table: dict[str, Tensor]) -> float:
    """The L2 norm of all entries together."""
    return float(torch.stack([value.square().sum() for value in table.values()]).sum().sqrt())


def _mean(table: dict[str, Tensor]) -> float:
    """Mean of all entries, at least the smallest positive float32, so that it can divide."""
    mean = sum(float(value.sum()) for value in table.values()) / sum(
        value.numel() for value in table.values()
    )
    return max(mean, torch.finfo(torch.float32).tiny)
