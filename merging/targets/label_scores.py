"""Test scores of single labels, with bootstrap intervals, and how labels are distributed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from merging.targets.bootstrap import area, ratio, weighted_mean
from merging.targets.calibration import expected_calibration_error
from models.meaning import Counts, Distribution, LabelMetric, LabelScore
from models.task import TaskInfo, answers

Array = NDArray[Any]
DRAWS = 1000
LEVEL = 95.0
"""Percentage of the draws inside of an interval."""
_DIGITS = 6


@dataclass(frozen=True)
class Measure:
    """What one score of a label is computed from.

    Attributes:
        metric: which score.
        values: (n,) predictions; of `recall` 1 where the row's class is the most probable, of
            `forces_mae` the mean absolute error of a row.
        known: (n,) labels, NaN where missing; for `recall` and `forces_mae` NaN where the row does
            not count.
        unit: of an error.
    """

    metric: LabelMetric
    values: Array
    known: Array
    unit: str = ""


@dataclass(frozen=True)
class LabelMeasures:
    """Predictions of one label on n test rows.

    Attributes:
        predictions: (n,) probabilities, or numbers in the unit of the label.
        known: (n,) its values, NaN where missing (`label_columns`).
        measures: what its scores are computed from, the main one first.
    """

    predictions: Array
    known: Array
    measures: tuple[Measure, ...]


def label_columns(labels: Array, info: TaskInfo) -> list[Array]:
    """Return the known values by label, (n,) float64 and NaN where missing: 0 and 1, or numbers in
    the unit of the label. A class is a label that is 1 on the rows of the class.

    Args:
        labels: (n, L) as the head learns them; for `multiclass` (n,) integers, -1 where missing.
        info: the task.
    """
    if info.target == "multiclass":
        unknown = labels < 0
        return [
            np.where(unknown, np.nan, (labels == k).astype(np.float64))
            for k in range(len(info.labels))
        ]
    if info.target == "regression":
        labels = answers(torch.from_numpy(labels).double(), info.output_kind).numpy()
    return list(labels.astype(np.float64).T)


def label_measures(predictions: Array, labels: Array, info: TaskInfo) -> list[LabelMeasures]:
    """Return by label what its scores are computed from; the main metric of the task is the first.

    Args:
        predictions: (n, L), probabilities, or numbers in the unit of the label.
        labels: see `label_columns`.
        info: the task.
    """
    columns, best, found = label_columns(labels, info), predictions.argmax(-1), []
    for k, (values, known) in enumerate(zip(predictions.T, columns, strict=True)):
        measures: tuple[Measure, ...]
        if info.target == "multiclass":
            of_class = np.where(known == 1, 1.0, np.nan)
            measures = (Measure("recall", (best == k).astype(np.float64), of_class),)
        elif info.target == "multilabel":
            name: LabelMetric = "auprc" if info.main_metric == "auprc" else "roc_auc"
            measures = (Measure(name, values, known),)
        else:
            error = Measure("mae", values, known, info.unit_of.get(info.labels[k], ""))
            ranks = Measure("spearman", values, known)
            measures = (ranks, error) if info.main_metric == "spearman" else (error, ranks)
        found.append(LabelMeasures(values, known, measures))
    return found


def counts_of(columns: Sequence[Array], value: float | None = None) -> Counts:
    """Count the known values of a label by subset (train, valid, test), or those equal to
    `value`."""
    numbers = [
        int((~np.isnan(column)).sum() if value is None else (column == value).sum())
        for column in columns
    ]
    return Counts(train=numbers[0], valid=numbers[1], test=numbers[2])


def distribution_of(columns: Sequence[Array]) -> Distribution:
    """Describe the known numbers of a label in all subsets together."""
    values = np.concatenate(columns)
    values = values[~np.isnan(values)]
    deviation = float(values.std())
    # Energies differ by far less than their mean: digits are those of the deviation.
    decimals = _DIGITS - 1 - math.floor(math.log10(deviation)) if deviation else _DIGITS
    quartiles = np.quantile(values, [0.25, 0.5, 0.75])
    low, middle, high = (round(float(value), decimals) for value in quartiles)
    return Distribution(
        mean=round(float(values.mean()), decimals),
        deviation=_rounded(deviation),
        quartiles=(low, middle, high),
    )


def calibration_error(probabilities: Array, known: Array) -> float | None:
    """Compute the expected calibration error of one label, rounded; None if no row has it."""
    values, labels = (
        torch.from_numpy(v.astype(np.float64))[:, None] for v in (probabilities, known)
    )
    error = expected_calibration_error(values, labels)
    return None if np.isnan(error) else _rounded(error)


def draw_counts(rows: int, seed: int = 0, draws: int = DRAWS) -> Array:
    """Draw test rows with replacement: (draws, rows) integers, how often each draw has a row."""
    generator = np.random.default_rng(seed)
    drawn = (generator.integers(rows, size=rows) for _ in range(draws))
    return np.stack([np.bincount(chosen, minlength=rows) for chosen in drawn])


def label_score(measure: Measure, counts: Array) -> LabelScore | None:
    """Compute a score with its interval, the percentiles of the scores of drawn rows (Efron and
    Tibshirani 1993, chapter 13). Draws without a score are left out.

    Args:
        measure: what it is computed from.
        counts: of `draw_counts`.

    Returns:
        None if the score is not defined on all rows.
    """
    compute = _SCORES[measure.metric]
    (value,) = compute(measure.values, measure.known, np.ones((1, len(measure.known)), int))
    if np.isnan(value):
        return None
    scores = compute(measure.values, measure.known, counts)
    outside = (100 - LEVEL) / 2
    low, high = np.nanpercentile(scores, [outside, 100 - outside])
    rounded = {"value": _rounded(value), "low": _rounded(low), "high": _rounded(high)}
    return LabelScore(metric=measure.metric, unit=measure.unit, **rounded)


def _rounded(value: float) -> float:
    """Round to six significant digits."""
    return float(f"{value:.{_DIGITS}g}")


def _average_precision(values: Array, known: Array, counts: Array) -> Array:
    """Compute the average precision of every draw: the precision at every different prediction,
    weighted by the share of positives that have it."""
    rows = np.flatnonzero(~np.isnan(known))
    if not len(rows):
        return np.full(len(counts), np.nan)
    rows = rows[(-values[rows]).argsort(kind="stable")]
    descending, is_one = values[rows], known[rows] == 1
    groups = np.flatnonzero(np.r_[True, descending[1:] < descending[:-1]])
    drawn = counts[:, rows]
    ones = np.add.reduceat(drawn * is_one, groups, axis=1)
    everything = np.add.reduceat(drawn, groups, axis=1)
    precision = ratio(ones.cumsum(1), everything.cumsum(1))
    total, found = ones.sum(1), np.where(ones > 0, ones * precision, 0).sum(1)
    return np.where(total < everything.sum(1), ratio(found, total), np.nan)


def _mean_error(values: Array, known: Array, counts: Array) -> Array:
    return weighted_mean(np.abs(values.astype(np.float64) - known), counts)


def _rows_mean(values: Array, known: Array, counts: Array) -> Array:
    return weighted_mean(np.where(np.isnan(known), np.nan, values), counts)


def _spearman(values: Array, known: Array, counts: Array) -> Array:
    """Compute the rank correlation of every draw."""
    rows = np.flatnonzero(~np.isnan(known))
    found = np.full(len(counts), np.nan)
    for k, drawn in enumerate(counts[:, rows]):
        chosen = np.repeat(rows, drawn)
        first, second = rankdata(values[chosen]), rankdata(known[chosen])
        if len(chosen) and min(np.ptp(first), np.ptp(second)) > 0:
            found[k] = np.corrcoef(first, second)[0, 1]
    return found


_SCORES: dict[LabelMetric, Callable[[Array, Array, Array], Array]] = {
    "roc_auc": area,
    "auprc": _average_precision,
    "recall": _rows_mean,
    "mae": _mean_error,
    "spearman": _spearman,
    "forces_mae": _rows_mean,
}
