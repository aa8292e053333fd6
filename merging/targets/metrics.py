"""Metrics by the target of a task, and batched inference to compute them."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, get_args

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

from models.errors import InvalidInputError, TrainingError
from models.families.inputs import Batch
from models.task import LabelTarget, Metric, TaskInfo, answers

Array = NDArray[Any]
BatchT = TypeVar("BatchT", bound=Batch)
BatchT_co = TypeVar("BatchT_co", bound=Batch, covariant=True)
ScoreName = Literal["roc_auc", "auprc", "accuracy", "scaled_mae", "spearman", "forces"]
SCORE_NAMES: tuple[ScoreName, ...] = get_args(ScoreName)
"""The names of scores in records. `scaled_mae` is the mean absolute error in standard deviations of
the training labels (of their logarithms, with scale `log10`)."""
_ERRORS: tuple[ScoreName, ...] = ("scaled_mae", "forces")
"""Names of errors; the score is the negative of the error."""


def compute_score(output: Array, labels: Array, info: TaskInfo) -> float:
    """Compute the score of predictions, for which greater is better.

    The score is the task's main metric, or the negative mean absolute error if that is `mae`. It
    selects epochs and mergers, and recoveries are computed from it. Regression outputs and labels
    should be standardised (`merging.targets.losses.LabelScale.standardise`), so that labels and
    tasks with different units have equal weight.

    Args:
        output: (N, L), the output of the head: logits, predictions or their logarithms.
        labels: (N, L), NaN where missing; for `multiclass` (N,) integers, -1 where missing.
        info: the task.

    Returns:
        The score, averaged over the labels for which it is defined; NaN if there is none (ROC-AUC
        and AUPRC need both classes, a rank correlation needs numbers that differ).

    Raises:
        TrainingError: an output is not finite.
        InvalidInputError: the target is energies and forces.
    """
    _check(output, info)
    metric = info.main_metric
    if metric == "roc_auc":
        return roc_auc(torch.from_numpy(labels), torch.from_numpy(output)).mean
    if metric == "auprc":
        return _ranking(output, labels)[metric]
    if metric == "accuracy":
        return _accuracy(output, labels)
    value = _over_labels(_REGRESSION[metric], output, labels)
    return -value if metric == "mae" else value


def score_name(metric: Metric) -> ScoreName:
    """Return the name in records of the score of tasks with this main metric."""
    return "scaled_mae" if metric == "mae" else metric


def metric_of_score(score: float, name: ScoreName) -> float:
    """Convert a score, for which greater is better, to the value that its name means, or that value
    to the score."""
    return -score if name in _ERRORS else score


def scores_by_metric(scores: Mapping[str, float], infos: Mapping[str, TaskInfo]) -> dict[str, Any]:
    """Convert scores by task to metrics, grouped as in results files: {metric: {task: value}}."""
    by_metric: dict[str, dict[str, float]] = {}
    for task, value in scores.items():
        name = score_name(infos[task].main_metric)
        by_metric.setdefault(name, {})[task] = metric_of_score(value, name)
    return by_metric


def scores_by_task(values: Mapping[str, Any]) -> dict[str, tuple[ScoreName, float]]:
    """Regroup the result of `scores_by_metric` by task: {task: (metric, value)}."""
    names = [name for name in SCORE_NAMES if name in values]
    return {task: (name, value) for name in names for task, value in values[name].items()}


def compute_metrics(output: Array, labels: Array, info: TaskInfo) -> dict[str, float]:
    """Compute all metrics of a target, averaged over the labels for which they are defined.

    The metrics of `multilabel` are `roc_auc` and `auprc` (average precision); of `multiclass`
    `accuracy`, and `roc_auc` and `auprc` of one class against the rest; of `regression` `mae`,
    `rmse`, `r2` (1 - residual variance / variance) and `spearman` (rank correlation; NaN for
    constant predictions), in the units of the labels, also with scale `log10`.

    Arguments and errors are those of `compute_score`.
    """
    _check(output, info)
    if info.target == "multilabel":
        return _ranking(output, labels)
    if info.target == "multiclass":
        known = labels >= 0
        probabilities = softmax(output[known].astype(np.float64), axis=1)
        one_hot = np.eye(output.shape[1])[labels[known]]
        return {"accuracy": _accuracy(output, labels), **_ranking(probabilities, one_hot)}
    numbers = _numbers(output, info), _numbers(labels, info)
    return {name: _over_labels(metric, *numbers) for name, metric in _REGRESSION.items()}


def _numbers(values: Array, info: TaskInfo) -> Array:
    """Return outputs or labels of a regression in the units of the labels, NaN where missing."""
    return answers(torch.from_numpy(values), info.output_kind).numpy()


def _check(output: Array, info: TaskInfo) -> None:
    if info.target == "energy_and_forces":
        expected = f"expected one of {list(get_args(LabelTarget))}"
        raise InvalidInputError(f"target: got {info.target!r}, {expected}")
    _check_finite(output)


def _check_finite(output: Array) -> None:
    if not np.isfinite(output).all():
        remedy = "a smaller `learning_rate` may help"
        raise TrainingError(f"got answers that are not finite, expected finite ones; {remedy}")


def _accuracy(output: Array, labels: Array) -> float:
    known = labels >= 0
    if not known.any():
        return math.nan
    return float((output.argmax(-1) == labels)[known].mean(dtype=np.float64))


def _known_pairs(labels: Array, output: Array) -> Iterator[tuple[Array, Array]]:
    """Yield for every label its known values and the outputs for these, both (n,) float64."""
    for column, values in zip(labels.T, output.T, strict=True):
        known = ~np.isnan(column)
        yield column[known].astype(np.float64), values[known].astype(np.float64)


def concordance(output: Array, labels: Array) -> float:
    """Compute the concordance index (Harrell et al. 1982), averaged over the labels that have
    different values; NaN if there is none.

    It is the probability that of two molecules with different labels the one with the greater label
    has the greater output, where equal outputs count half: 0.5 for guessing, 1 for the right order.
    For labels 0 and 1 it is ROC-AUC, so that classifications and regressions can be compared.

    Args:
        output, labels: (N, L), labels NaN where missing.
    """
    return mean_of_defined([_concordance(*pair) for pair in _known_pairs(labels, output)])


def _concordance(labels: Array, output: Array) -> float:
    order = np.sign(labels[:, None] - labels)
    pairs = np.abs(order).sum()
    if not pairs:
        return math.nan
    return float(0.5 + 0.5 * (order * np.sign(output[:, None] - output)).sum() / pairs)


def _ranking(output: Array, labels: Array) -> dict[str, float]:
    """Compute ROC-AUC and AUPRC, averaged over the labels with both classes."""
    values = [
        (roc_auc_score(*pair), average_precision_score(*pair))
        for pair in _known_pairs(labels, output)
        if len(np.unique(pair[0])) == 2
    ]
    means = np.mean(values, axis=0) if values else (math.nan, math.nan)
    return dict(zip(("roc_auc", "auprc"), map(float, means), strict=True))


def _over_labels(metric: Callable[[Array, Array], float], output: Array, labels: Array) -> float:
    """Average a metric of known values over the labels for which it is defined."""
    pairs = _known_pairs(labels, output)
    return mean_of_defined([float(metric(*pair)) for pair in pairs if len(pair[0])])


def _r2(labels: Array, output: Array) -> float:
    return math.nan if len(np.unique(labels)) < 2 else float(r2_score(labels, output))


def _spearman(labels: Array, output: Array) -> float:
    if min(len(np.unique(labels)), len(np.unique(output))) < 2:
        return math.nan
    return float(spearmanr(labels, output).statistic)


_REGRESSION: dict[str, Callable[[Array, Array], float]] = {
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
        per_label: L values, NaN where a label does not have both classes.
    """

    mean: float
    per_label: tuple[float, ...]


def roc_auc(labels: Tensor, scores: Tensor) -> RocAuc:
    """Compute ROC-AUC averaged over the labels that have both classes, with missing labels masked
    (Hu et al. 2020).

    Args:
        labels: (G, L), 0 or 1, NaN where missing.
        scores: (G, L), any monotone score, such as logits.

    Raises:
        TrainingError: a score is not finite.
    """
    _check_finite(scores.numpy())
    per_label = tuple(
        float(roc_auc_score(*pair)) if len(np.unique(pair[0])) == 2 else math.nan
        for pair in _known_pairs(labels.numpy(), scores.numpy())
    )
    return RocAuc(mean_of_defined(per_label), per_label)


def mean_of_defined(values: Sequence[float]) -> float:
    """Compute the mean of the values that are not NaN; NaN if there is none."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


class GraphStore(Protocol[BatchT_co]):
    """Many graphs, from which batches are taken by number."""

    def __len__(self) -> int:
        """Number of graphs."""
        ...

    def select(self, indices: Tensor) -> BatchT_co:
        """Join the graphs at `indices` to one batch, in that order."""
        ...


def batches(
    graphs: GraphStore[BatchT], rows: Tensor, batch_size: int
) -> Iterator[tuple[Tensor, BatchT]]:
    """Yield the graphs with the numbers `rows` (n,), in that order and `batch_size` at a time, as
    (numbers, batch)."""
    for chosen in rows.split(batch_size):
        yield chosen, graphs.select(chosen)


@torch.no_grad()
def compute_outputs(
    forward: Callable[[BatchT], Tensor],
    graphs: GraphStore[BatchT],
    rows: Tensor,
    device: torch.device,
    batch_size: int = 256,
) -> Tensor:
    """Compute the outputs of `forward` for the graphs with the numbers `rows`, (len(rows), L), and
    return them on the CPU."""
    return torch.cat(
        [forward(batch.to(device)).cpu() for _, batch in batches(graphs, rows, batch_size)]
    )
