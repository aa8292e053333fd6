"""AdaMerging: learns the coefficients of the task vectors by minimising prediction entropy on
unlabelled graphs."""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from tqdm import tqdm

from merging.mergers.base import MergeInputs, MergeResult, MergerOptions, stack_states
from merging.mergers.task_vector import TaskVector
from models.data.batch import GraphBatch
from models.errors import InvalidInputError
from models.task import Target


class AdaMergingOptions(MergerOptions):
    """Options of AdaMerging; the defaults are the paper's.

    Attributes:
        granularity: one coefficient per task and parameter tensor (`layer`), or per task (`task`).
        scaling: initial value of all coefficients; for eight tasks of GCN supervised_contextpred
            task arithmetic uses 0.11.
        learning_rate: of Adam.
        steps: of Adam, each on one batch of every task.
    """

    granularity: Literal["layer", "task"] = "layer"
    scaling: Annotated[float, Field(ge=0, le=1)] = 0.3
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    steps: Annotated[int, Field(ge=1)] = 500


def adamerging(inputs: MergeInputs, options: AdaMergingOptions) -> MergeResult:
    """Merge with the coefficients that minimise the mean entropy of the predictions.

    theta_l = theta_pre_l + sum_k lambda_kl tau_kl (Yang et al. 2024, arXiv:2310.02575). The paper
    predicts one class among many; of independent labels the Bernoulli entropies are averaged, so
    that every task counts alike whatever its number of labels. Coefficients are clamped to [0, 1],
    as in the authors' code: larger weights lower the entropy of any model.

    Raises:
        InvalidInputError: a regression, whose numbers have no entropy, or a task on nodes.
    """
    inputs.require_graph_labels("adamerging")
    for task, seen in inputs.calibration.items():
        if seen.target not in _ENTROPIES:
            expected = "expected tasks whose answers are probabilities (adamerging)"
            raise InvalidInputError(f"got {task}, a {seen.target}, {expected}")
    adaptation = _Adaptation(inputs, options)
    before = adaptation.entropy()
    adaptation.run(options)
    means = dict(
        zip(adaptation.tasks, adaptation.coefficients.detach().mean(1).tolist(), strict=True)
    )
    record = {
        **options.model_dump(),
        "coefficients": means,
        "entropy_before": before,
        "entropy_after": adaptation.entropy(),
    }
    return MergeResult(
        {key: value.detach() for key, value in adaptation.merged().items()}, record=record
    )


def bernoulli_entropy(logits: Tensor) -> Tensor:
    """Compute the mean entropy of independent labels, in nats: logits (G, C) -> scalar.

    Per label it is -p log p - (1 - p) log(1 - p) with p = sigmoid(logit).
    """
    # The entropy is even in z; at +|z| it would take the logarithm of a rounded 1.
    size = logits.abs()
    return (F.softplus(-size) + size * (-size).sigmoid()).mean()


def categorical_entropy(logits: Tensor) -> Tensor:
    """Mean over molecules of -sum_c p_c log p_c, p = softmax(logits), in nats: (G, C) -> scalar."""
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()


_ENTROPIES: dict[Target, Callable[[Tensor], Tensor]] = {
    "multilabel": bernoulli_entropy,
    "multiclass": categorical_entropy,
}


class _Adaptation:
    """The merged model as a function of the coefficients (K, parameters or 1)."""

    def __init__(self, inputs: MergeInputs, options: AdaMergingOptions) -> None:
        # Sorted by name: Adam makes full steps even of gradients that are rounding errors, and
        # rounding depends on the order of the tasks.
        self.tasks = sorted(inputs.finetuned)
        vectors = inputs.task_vectors()
        self._deltas = stack_states(vectors[task].delta for task in self.tasks)
        self._pretrained, self._calibration = inputs.pretrained, inputs.calibration
        columns = len(self._deltas) if options.granularity == "layer" else 1
        device = next(iter(self._deltas.values())).device
        self.coefficients = torch.full(
            (len(self.tasks), columns), options.scaling, device=device, requires_grad=True
        )
        # In training mode BatchNorm uses the batch's statistics: the merged model has none of its
        # own before the merging is done, and those of its parents do not fit it. There is no
        # dropout, and the running statistics that change are the copies in `merged()`.
        self._network = inputs.network(inputs.pretrained).train()

    def merged(self) -> dict[str, Tensor]:
        """Return the state dict of the merged backbone, differentiable in the coefficients."""
        columns = self.coefficients.expand(-1, len(self._deltas)).unbind(1)
        scaled = {
            key: torch.tensordot(column, delta, dims=1)
            for column, (key, delta) in zip(columns, self._deltas.items(), strict=True)
        }
        return TaskVector(scaled).apply(self._pretrained)

    @torch.no_grad()
    def entropy(self) -> float:
        """Compute the prediction entropy, averaged over a task's batches and then over tasks."""
        weights = self.merged()
        means = [
            sum(self._entropy(weights, task, batch) for batch in batches) / len(batches)
            for task, batches in self._batches()
        ]
        return float(sum(means) / len(means))

    def run(self, options: AdaMergingOptions) -> None:
        """Minimise the entropy over the coefficients, step by step."""
        optimizer = torch.optim.Adam([self.coefficients], lr=options.learning_rate)
        progress = tqdm(range(options.steps), desc="AdaMerging", unit="step")
        for step in progress:
            weights = self.merged()
            loss = torch.stack(
                [
                    self._entropy(weights, task, batches[step % len(batches)])
                    for task, batches in self._batches()
                ]
            ).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                self.coefficients.clamp_(0, 1)
            progress.set_postfix(entropy=f"{float(loss.detach()):.4f}")

    def _batches(self) -> list[tuple[str, tuple[GraphBatch, ...]]]:
        return [(task, self._calibration[task].batches) for task in self.tasks]

    def _entropy(self, weights: dict[str, Tensor], task: str, batch: GraphBatch) -> Tensor:
        seen = self._calibration[task]
        logits = seen.logits(functional_call(self._network, weights, (batch,)), batch)
        return _ENTROPIES[seen.target](logits)
