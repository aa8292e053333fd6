import numpy as np
import pytest

from merging.targets.bootstrap import drawn_scores, paired_bootstrap
from merging.targets.metrics import compute_score
from models.task import LabelTarget, TaskInfo

VALUES = TaskInfo(labels=("y",), target="regression")
CLASSES = TaskInfo(labels=("y",))


def test_difference_and_error_of_a_mean() -> None:
    """The score of a regression is minus the mean absolute error, whose standard error is known."""
    random = np.random.default_rng(0)
    labels, gains = np.zeros((400, 1)), random.uniform(0, 1, (400, 1))
    first, second = np.full((400, 1), 2.0), 2.0 - gains
    difference, error = paired_bootstrap([(first, second)], labels, VALUES)
    assert difference == pytest.approx(gains.mean())
    assert error == pytest.approx(gains.std(ddof=1) / 20, rel=0.15)
    assert paired_bootstrap([(first, second)], labels, VALUES) == (difference, error)


def test_equal_outputs_differ_by_nothing() -> None:
    labels = np.array([[0.0], [1.0]] * 10)
    outputs = np.random.default_rng(1).normal(size=(20, 1))
    assert paired_bootstrap([(outputs, outputs)], labels, CLASSES, draws=20) == (0, 0)


def test_pairs_are_averaged_and_draws_with_one_class_left_out() -> None:
    labels = np.array([[1.0], [0.0], [0.0]])
    worst, best = -labels, labels
    difference, error = paired_bootstrap([(worst, best), (best, best)], labels, CLASSES)
    assert difference == pytest.approx(0.5)
    assert np.isfinite(error)


@pytest.mark.parametrize("target", ["multilabel", "regression", "multiclass"])
def test_scores_of_draws_are_those_of_the_drawn_rows(target: LabelTarget) -> None:
    """With equal outputs, missing labels, a label that nobody knows, and draws in which a label
    has one class only or none at all."""
    random, names = np.random.default_rng(2), ("a", "b", "c", "d")
    info = TaskInfo(labels=names, target=target)
    output = random.integers(0, 4, (12, 4)).astype(np.float32)
    labels = random.integers(0, 2, (12, 4)).astype(np.float64)
    labels[random.random((12, 4)) < 0.4] = np.nan
    labels[:, 1], labels[2:, 2] = np.nan, np.nan
    if target == "multiclass":
        labels = random.integers(-1, 4, 12)
    draws = [random.integers(12, size=12) for _ in range(100)]
    draws += [np.full(12, row) for row in range(12)]
    counts = np.stack([np.bincount(rows, minlength=12) for rows in draws])
    expected = [compute_score(output[rows], labels[rows], info) for rows in draws]
    assert 0 < np.isnan(expected).sum() < 20
    np.testing.assert_allclose(drawn_scores(output, labels, info, counts), expected, atol=1e-12)


def test_a_label_without_known_values_has_no_score() -> None:
    labels, output = np.full((3, 1), np.nan), np.zeros((3, 1))
    for info in (VALUES, CLASSES):
        scores = drawn_scores(output, labels, info, np.ones((2, 3), dtype=np.int64))
        assert np.isnan(scores).all()
