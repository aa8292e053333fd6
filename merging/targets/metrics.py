"""How good answers are, by what a task answers; and batched inference for it."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from scipy.stats import spearmanr
from sklearn.metrics import (
    average_precision_score,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)
from torch import Tensor

from models.data.batch import GraphBatch
from models.data.molecule import PackedGraphs
from models.errors import InvalidInputError, TrainingError
from models.task import LabelTarget, Target, TaskInfo

Array = NDArray[Any]
Metric = Literal["roc_auc", "accuracy", "mae", "forces"]
METRICS: dict[Target, Metric] = {
    "multilabel": "roc_auc",
    "multiclass": "accuracy",
    "regression": "mae",
    "energy_and_forces": "forces",
}
"""By target the metric that stands for a task. Links are measured as a label: ROC-AUC of pairs."""
SCORE_NAMES: dict[Target, str] = {
    "multilabel": "roc_auc",
    "multiclass": "accuracy",
    "regression": "scaled_mae",
    "energy_and_forces": "forces",
}
"""By target what a score is called in records (`reported`); `scaled_mae` is the mean absolute error
in standard deviations of the training labels, whose score is minus that."""


def score(output: Array, labels: Array, info: TaskInfo) -> float:
    """How good answers are as one number, the greater the better.

    ROC-AUC of independent labels, accuracy of classes, minus the mean absolute error of numbers.
    Epochs, mergers and recoveries are compared by it. Give numbers in standard deviations of the
    training labels (`merging.targets.losses.LabelScale.standardised`): then several labels, and
    several tasks, count alike whatever their units.

    Args:
        output: (N, L), what the head says: logits or numbers.
        labels: (N, L), NaN where missing; of classes (N,) integers, -1 where missing.
        info: of the task.

    Returns:
        NaN if no label is known (for ROC-AUC: if no label has both classes).

    Raises:
        TrainingError: a number of the output is not finite.
        InvalidInputError: a target without labels.
    """
    _check(output, info)
    if info.target == "multilabel":
        return roc_auc(torch.from_numpy(labels), torch.from_numpy(output)).mean
    if info.target == "multiclass":
        return _accuracy(output, labels)
    return -_over_labels(mean_absolute_error, output, labels)


def reported(score: float, target: Target) -> float:
    """A score as the metric that `SCORE_NAMES` names; and the other way round."""
    return -score if target in ("regression", "energy_and_forces") else score


def by_metric(scores: Mapping[str, float], targets: Mapping[str, Target]) -> dict[str, Any]:
    """Scores by task as results files have them: by the name of the metric (`SCORE_NAMES`), then by
    task, as that metric (`reported`)."""
    found: dict[str, dict[str, float]] = {}
    for task, value in scores.items():
        named = found.setdefault(SCORE_NAMES[targets[task]], {})
        named[task] = reported(value, targets[task])
    return found


def by_task(values: Mapping[str, Any]) -> dict[str, tuple[str, float]]:
    """By task the name of its metric and its value, from what `by_metric` made."""
    names = [name for name in SCORE_NAMES.values() if name in values]
    return {task: (name, value) for name in names for task, value in values[name].items()}


def metrics(output: Array, labels: Array, info: TaskInfo) -> dict[str, float]:
    """All metrics of a target, the main one (`METRICS`) first, each averaged over the labels for
    which it is defined.

    Independent labels: `roc_auc` and `auprc` (average precision), over labels with both classes.
    Classes: `accuracy`, and `roc_auc` and `auprc` of each class against all others. Numbers:
    `mae`, `rmse`, `r2` (1 - residual variance / variance) and `spearman` (rank correlation; NaN
    for a constant answer), in the units that they are given in.

    Args and errors: as `score`.
    """
    _check(output, info)
    if info.target == "multilabel":
        return _ranking(output, labels)
    if info.target == "multiclass":
        known = labels >= 0
        probabilities = softmax(output[known].astype(np.float64), axis=1)
        one_hot = np.eye(output.shape[1])[labels[known]]
        return {"accuracy": _accuracy(output, labels), **_ranking(probabilities, one_hot)}
    return {name: _over_labels(metric, output, labels) for name, metric in _OF_NUMBERS.items()}


def _check(output: Array, info: TaskInfo) -> None:
    if info.target == "energy_and_forces":
        expected = f"expected one of {list(get_args(LabelTarget))}"
        raise InvalidInputError(f"target: got {info.target!r}, {expected}")
    if not np.isfinite(output).all():
        remedy = "a smaller `learning_rate` may help"
        raise TrainingError(f"got answers that are not finite, expected finite ones; {remedy}")


def _accuracy(output: Array, labels: Array) -> float:
    known = labels >= 0
    if not known.any():
        return math.nan
    return float((output.argmax(-1) == labels)[known].mean(dtype=np.float64))


def _ranking(output: Array, labels: Array) -> dict[str, float]:
    """ROC-AUC and AUPRC, averaged over the labels with both classes."""
    found = []
    for column, values in zip(labels.T, output.T, strict=True):
        known = ~np.isnan(column)
        if len(np.unique(column[known])) == 2:
            pair = column[known], values[known].astype(np.float64)
            found.append((roc_auc_score(*pair), average_precision_score(*pair)))
    means = np.mean(found, axis=0) if found else (math.nan, math.nan)
    return dict(zip(("roc_auc", "auprc"), map(float, means), strict=True))


def _over_labels(metric: Callable[[Array, Array], float], output: Array, labels: Array) -> float:
    """A metric of each label's known numbers, averaged over the labels for which it is defined."""
    found = []
    for column, values in zip(
        labels.T.astype(np.float64), output.T.astype(np.float64), strict=True
    ):
        known = ~np.isnan(column)
        if known.any():
            found.append(float(metric(column[known], values[known])))
    return mean_of_defined(found)


def _r2(labels: Array, output: Array) -> float:
    return math.nan if len(np.unique(labels)) < 2 else float(r2_score(labels, output))


def _spearman(labels: Array, output: Array) -> float:
    if min(len(np.unique(labels)), len(np.unique(output))) < 2:
        return math.nan
    return float(spearmanr(labels, output).statistic)


_OF_NUMBERS: dict[str, Callable[[Array, Array], float]] = {
    "mae": mean_absolute_error,
    "rmse": root_mean_squared_error,
    "r2": _r2,
    "spearman": _spearman,
}


@dataclass(frozen=True)
class RocAuc:
    """ROC-AUC of one task.

    Attributes:
        mean: average over the labels for which it is defined, in [0, 1]; NaN if there is none.
        per_label: (C) values, NaN where a label does not have both classes.
    """

    mean: float
    per_label: tuple[float, ...]


def roc_auc(labels: Tensor, scores: Tensor) -> RocAuc:
    """ROC-AUC averaged over the labels that have both classes; missing labels are masked (Hu et al.
    2020).

    Args:
        labels: (G, C), 0 or 1, NaN where missing.
        scores: (G, C), any monotone score.

    Raises:
        TrainingError: a score is not finite.
    """
    if not bool(scores.isfinite().all()):
        remedy = "a smaller `learning_rate` may help"
        raise TrainingError(f"got answers that are not finite, expected finite ones; {remedy}")
    per_label = []
    for column, score in zip(labels.T, scores.T, strict=True):
        known = ~column.isnan()
        defined = column[known].unique().numel() == 2
        per_label.append(
            float(roc_auc_score(column[known].numpy(), score[known].double().numpy()))
            if defined
            else math.nan
        )
    return RocAuc(mean_of_defined(per_label), tuple(per_label))


def mean_of_defined(values: Sequence[float]) -> float:
    """Mean of the values that are numbers; NaN if there is none."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def batches(
    graphs: PackedGraphs, rows: Tensor, batch_size: int
) -> Iterator[tuple[Tensor, GraphBatch]]:
    """The chosen graphs in order, `batch_size` at a time, with their row numbers."""
    for chosen in rows.split(batch_size):
        yield chosen, graphs.select(chosen)


@torch.no_grad()
def predict(
    forward: Callable[[GraphBatch], Tensor],
    graphs: PackedGraphs,
    rows: Tensor,
    device: torch.device,
    batch_size: int = 256,
) -> Tensor:
    """Outputs of `forward` for the chosen graphs, (len(rows), C), on the CPU."""
    return torch.cat(
        [forward(batch.to(device)).cpu() for _, batch in batches(graphs, rows, batch_size)]
    )
