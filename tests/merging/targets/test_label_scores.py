"""Scores of single labels against scikit-learn, and their intervals."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, mean_absolute_error, roc_auc_score

from merging.targets.label_scores import (
    LabelMeasures,
    Measure,
    calibration_error,
    counts_of,
    distribution_of,
    draw_counts,
    label_columns,
    label_measures,
    label_score,
)
from models.meaning import LabelMetric, LabelScore
from models.task import TaskInfo

RANDOM = np.random.default_rng(3)
ROWS = 60
KNOWN = np.where(RANDOM.random(ROWS) < 0.2, np.nan, RANDOM.integers(0, 2, ROWS))
VALUES = RANDOM.integers(0, 8, ROWS) / 8  # many are equal
NUMBERS = np.where(np.isnan(KNOWN), np.nan, VALUES + RANDOM.normal(size=ROWS))


@pytest.mark.parametrize(
    ("metric", "known", "expected"),
    [
        ("roc_auc", KNOWN, roc_auc_score),
        ("auprc", KNOWN, average_precision_score),
        ("mae", NUMBERS, mean_absolute_error),
        ("spearman", NUMBERS, lambda known, values: spearmanr(known, values).statistic),
    ],
)
def test_scores_and_intervals_are_those_of_the_drawn_rows(
    metric: LabelMetric, known: np.ndarray, expected: object
) -> None:
    counts = draw_counts(ROWS, draws=50)
    score = label_score(Measure(metric, VALUES, known, "K"), counts)
    assert isinstance(score, LabelScore)
    slow = []
    for drawn in (np.ones(ROWS, int), *counts):
        rows = np.repeat(np.arange(ROWS), drawn)
        rows = rows[~np.isnan(known[rows])]
        slow.append(expected(known[rows], VALUES[rows]))  # type: ignore[operator]
    assert score.value == pytest.approx(slow[0], rel=1e-5)
    assert (score.low, score.high) == pytest.approx(np.percentile(slow[1:], [2.5, 97.5]), rel=1e-5)
    assert score.unit == "K"


def test_the_interval_of_a_mean_error_is_that_of_statistics() -> None:
    """1.96 standard errors to either side."""
    errors = RANDOM.uniform(0, 1, 500)
    score = label_score(Measure("mae", errors, np.zeros(500)), draw_counts(500))
    assert score is not None
    wide = 1.96 * errors.std() / np.sqrt(500)
    assert score.value == pytest.approx(errors.mean(), rel=1e-5)
    assert (score.low, score.high) == pytest.approx(
        (score.value - wide, score.value + wide), rel=0.02
    )
    assert score == label_score(Measure("mae", errors, np.zeros(500)), draw_counts(500))


@pytest.mark.parametrize("metric", ["roc_auc", "auprc", "mae", "spearman", "recall", "forces_mae"])
def test_without_known_rows_there_is_no_score(metric: LabelMetric) -> None:
    nobody = np.full(4, np.nan)
    assert label_score(Measure(metric, np.arange(4.0), nobody), draw_counts(4, draws=5)) is None


@pytest.mark.parametrize("metric", ["roc_auc", "auprc"])
def test_of_one_class_there_is_no_score(metric: LabelMetric) -> None:
    for known in (np.zeros(4), np.ones(4)):
        assert label_score(Measure(metric, np.arange(4.0), known), draw_counts(4, draws=5)) is None


def test_columns_by_target() -> None:
    classes = TaskInfo(labels=("a", "b"), target="multiclass")
    first, second = label_columns(np.array([0, 1, -1]), classes)
    np.testing.assert_array_equal(first, [1, 0, np.nan])
    np.testing.assert_array_equal(second, [0, 1, np.nan])
    logarithms = TaskInfo(labels=("t",), target="regression", scale="log10")
    (column,) = label_columns(np.array([[2.0], [np.nan]], dtype=np.float32), logarithms)
    np.testing.assert_allclose(column, [100, np.nan])
    (column,) = label_columns(np.array([[1.0], [np.nan]]), TaskInfo(labels=("a",)))
    np.testing.assert_array_equal(column, [1, np.nan])


def measured(predictions: np.ndarray, labels: np.ndarray, info: TaskInfo) -> list[LabelMeasures]:
    return label_measures(predictions, labels, info)


def test_measures_by_target_and_main_metric() -> None:
    names = {
        ("multilabel", None): ["roc_auc"],
        ("multilabel", "auprc"): ["auprc"],
        ("regression", None): ["mae", "spearman"],
        ("regression", "spearman"): ["spearman", "mae"],
    }
    one = np.array([[0.2], [0.8]])
    for (target, metric), expected in names.items():
        info = TaskInfo.model_validate({"labels": ["t"], "target": target, "metric": metric})
        (own,) = measured(one, np.array([[0.0], [1.0]]), info)
        assert [measure.metric for measure in own.measures] == expected


def test_recall_is_of_the_rows_of_a_class() -> None:
    info = TaskInfo(labels=("a", "b"), target="multiclass")
    predictions = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    own = measured(predictions, np.array([0, 0, 1, -1]), info)
    scores = [label_score(label.measures[0], draw_counts(4, draws=9)) for label in own]
    assert [score.value for score in scores if score] == [0.5, 0]
    np.testing.assert_array_equal(own[1].predictions, predictions[:, 1])


def test_counts_and_distribution() -> None:
    subsets = [np.array([1.0, 0, np.nan]), np.array([1.0]), np.array([np.nan])]
    assert tuple(counts_of(subsets).model_dump().values()) == (2, 1, 0)
    assert tuple(counts_of(subsets, 1.0).model_dump().values()) == (1, 1, 0)
    energies = -17636 + np.linspace(0, 1, 101)
    found = distribution_of([energies, np.array([np.nan])])
    assert found.quartiles == pytest.approx((-17635.75, -17635.5, -17635.25))
    assert (found.mean, found.deviation) == pytest.approx((-17635.5, energies.std()), rel=1e-5)
    assert distribution_of([np.array([3.0, 3.0])]).deviation == 0


def test_calibration_error_of_a_label() -> None:
    assert calibration_error(np.array([0.25, 0.25]), np.array([0.0, 1.0])) == pytest.approx(0.25)
    assert calibration_error(np.array([0.25]), np.array([np.nan])) is None
