import numpy as np
import pytest

from merging.targets.bootstrap import paired_bootstrap
from models.task import TaskInfo

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
