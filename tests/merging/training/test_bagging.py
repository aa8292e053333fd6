from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

from merging.config.training import BaggedConfig
from merging.training.bagging import (
    CLIP,
    bagged_library,
    binary_trees,
    constant_bagged,
    fit_bagged,
    join_bagged,
)
from models.data.fingerprint import WIDTH
from models.errors import TrainingError
from tests.forests import random_rows

ROWS = random_rows(80, 12) + np.random.default_rng(1).normal(size=(80, 12)).astype(np.float32)
LABELS = (ROWS[:, 3] + ROWS[:, 5] > 3).astype(np.float32)
CHOSEN = np.arange(200, 212)
SETTINGS = BaggedConfig(trees=10, min_leaf=2)


def wide(rows: np.ndarray) -> np.ndarray:
    full = np.zeros((len(rows), WIDTH), dtype=np.float32)
    full[:, CHOSEN] = rows
    return full


def test_arrays_reproduce_the_library() -> None:
    model = RandomForestClassifier(
        10, min_samples_leaf=2, random_state=4, class_weight="balanced"
    ).fit(ROWS, LABELS)
    share = np.clip(model.predict_proba(ROWS)[:, 1], CLIP, 1 - CLIP)
    trees = fit_bagged(ROWS, LABELS, CHOSEN, "multilabel", SETTINGS, 4)
    forest = join_bagged([trees, constant_bagged(-1.5), trees], "multilabel")
    forest.check(WIDTH, 3)
    outputs = forest.outputs(wide(ROWS))
    for column in (0, 2):
        np.testing.assert_allclose(outputs[:, column], np.log(share) - np.log1p(-share), atol=1e-5)
    assert outputs[:, 1].tolist() == [-1.5] * 80


def test_values_of_a_regression() -> None:
    values = (3 * ROWS[:, 3] + 100).astype(np.float32)
    model = RandomForestRegressor(10, min_samples_leaf=2, random_state=4, max_features=1 / 3)
    expected = model.fit(ROWS, values).predict(ROWS)
    forest = join_bagged(
        [fit_bagged(ROWS, values, CHOSEN, "regression", SETTINGS, 4)], "regression"
    )
    np.testing.assert_allclose(forest.outputs(wide(ROWS))[:, 0], expected, rtol=1e-5)


def test_a_feature_at_the_border_goes_where_the_library_sends_it() -> None:
    """Borders are float64 there: rounding one up would send a feature between both to the left."""
    border = 0.1 + 1e-12
    tree = SimpleNamespace(
        children_left=np.array([1, -1, -1]),
        children_right=np.array([2, -1, -1]),
        feature=np.array([0, -2, -2]),
        threshold=np.array([border, -2.0, -2.0]),
        value=np.array([[[0.5]], [[0.0]], [[1.0]]]),
        node_count=3,
    )
    forest = join_bagged([binary_trees([tree], np.array([0]))], "regression")
    rows = np.zeros((2, WIDTH), dtype=np.float32)
    near = np.float32(0.1)
    rows[:, 0] = near, np.nextafter(near, np.float32(1))
    assert (rows[:, 0].astype(np.float64) > border).tolist() == forest.outputs(rows)[:, 0].tolist()


def test_trees_that_the_arrays_cannot_hold_are_refused() -> None:
    nodes = 70_000
    tree = SimpleNamespace(
        children_left=np.array([1, *[-1] * (nodes - 1)]),
        children_right=np.array([nodes - 1, *[-1] * (nodes - 1)]),
        feature=np.zeros(nodes, dtype=np.int64),
        threshold=np.zeros(nodes),
        value=np.zeros((nodes, 1, 1)),
        node_count=nodes,
    )
    with pytest.raises(TrainingError, match=r"got a tree of 70000 nodes.*min_leaf"):
        binary_trees([tree], CHOSEN)
    tree.children_left[0], tree.children_right[0] = 2, 1
    with pytest.raises(TrainingError, match="expected the left child next"):
        binary_trees([tree], CHOSEN)


def test_library_has_a_version() -> None:
    assert bagged_library().startswith("scikit-learn 1.")
