import sys

import numpy as np
import pytest
import torch

from merging.config.training import BoostedConfig
from merging.training.boosting import (
    boosted_library,
    constant_boosted,
    fit_boosted,
    join_boosted,
    symmetric_trees,
)
from models.data.fingerprint import WIDTH
from models.errors import ConfigError
from models.experts.symmetric_trees import NEVER
from tests.forests import random_rows

ROWS = random_rows(60, 12)
LABELS = (ROWS[:, 3] > 1).astype(np.float32)
VALUES = (2 * ROWS[:, 3] - ROWS[:, 5] + 10).astype(np.float32)
CHOSEN = np.arange(100, 112)
SETTINGS = BoostedConfig(trees=30, depth=3)
REASON = "CatBoost trains these trees and is not installed (g-merging[trees])"


def wide(rows: np.ndarray) -> np.ndarray:
    """Fingerprints that are 0 but for the chosen columns."""
    full = np.zeros((len(rows), WIDTH), dtype=np.float32)
    full[:, CHOSEN] = rows
    return full


@pytest.mark.parametrize("balanced", [False, True])
def test_arrays_reproduce_the_library(balanced: bool) -> None:
    catboost = pytest.importorskip("catboost", reason=REASON)
    weights = "Balanced" if balanced else None
    model = catboost.CatBoostClassifier(
        iterations=30, depth=3, random_seed=5, thread_count=1, verbose=False,
        allow_writing_files=False, loss_function="Logloss", auto_class_weights=weights,
    ).fit(ROWS, LABELS)  # fmt: skip
    expected = model.predict(ROWS, prediction_type="RawFormulaVal")
    trees = symmetric_trees(model, CHOSEN)
    bits = (wide(ROWS)[:, None, :][:, :, trees.columns.ravel()].reshape(60, 30, 3)) > trees.borders
    leaf = (bits * (1 << np.arange(3))).sum(-1)
    sums = trees.leaves[np.arange(30), leaf].sum(-1) + trees.base
    np.testing.assert_allclose(sums, expected, atol=1e-5)
    settings = SETTINGS.model_copy(update={"balanced": balanced})
    fitted = fit_boosted(ROWS, LABELS, CHOSEN, "multilabel", settings, 5)
    forest = join_boosted([fitted])
    forest.check(WIDTH, 1)
    # whole steps cost at most half a step per tree
    bound = 30 * forest.step[0] / 2 + 1e-5
    np.testing.assert_allclose(forest.outputs(wide(ROWS))[:, 0], expected, atol=bound)
    assert bound < 1e-3
    assert np.ptp(expected) > 1


def test_a_regression_is_in_the_units_of_its_label() -> None:
    pytest.importorskip("catboost", reason=REASON)
    trees = fit_boosted(ROWS, VALUES, CHOSEN, "regression", SETTINGS, 0)
    outputs = join_boosted([trees]).outputs(wide(ROWS))[:, 0]
    assert np.abs(outputs - VALUES).mean() < 0.5 * np.abs(VALUES - VALUES.mean()).mean()
    assert outputs.mean() == pytest.approx(VALUES.mean(), abs=0.1)


def test_shallower_trees_and_constant_labels_are_joined() -> None:
    pytest.importorskip("catboost", reason=REASON)
    deep = fit_boosted(ROWS, LABELS, CHOSEN, "multilabel", SETTINGS, 0)
    shallow = fit_boosted(
        ROWS, LABELS, CHOSEN, "multilabel", SETTINGS.model_copy(update={"depth": 1}), 0
    )
    forest = join_boosted([deep, constant_boosted(-2.5), shallow])
    forest.check(WIDTH, 3)
    assert forest.starts.tolist() == [0, 30, 30, 60]
    assert (forest.borders[30:, 1:] == np.float32(NEVER)).all()
    outputs = forest.outputs(wide(ROWS))
    assert outputs[:, 1].tolist() == [-2.5] * 60
    for column, trees in ((0, deep), (2, shallow)):
        np.testing.assert_allclose(
            outputs[:, column], join_boosted([trees]).outputs(wide(ROWS))[:, 0], atol=1e-6
        )


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "catboost", None)
    with pytest.raises(ConfigError, match=r"got no package catboost, expected it \(pip install"):
        boosted_library()


def test_torch_is_not_needed_to_train() -> None:
    """The arrays become tensors of a stage without sharing memory."""
    forest = join_boosted([constant_boosted(1.0)])
    tensors = {name: torch.from_numpy(array) for name, array in vars(forest).items()}
    pointers = [tensor.data_ptr() for tensor in tensors.values() if tensor.numel()]
    assert len(set(pointers)) == len(pointers)


def test_contributions_are_those_of_the_library() -> None:
    """CatBoost's Shapley values with one reference, a molecule of zeros."""
    catboost = pytest.importorskip("catboost", reason=REASON)
    model = catboost.CatBoostRegressor(
        iterations=40, depth=4, random_seed=5, thread_count=1, verbose=False,
        allow_writing_files=False,
    ).fit(ROWS, VALUES)  # fmt: skip
    forest = join_boosted([symmetric_trees(model, CHOSEN)])
    reference = catboost.Pool(np.zeros((1, ROWS.shape[1])), [0.0])
    expected = model.get_feature_importance(
        catboost.Pool(ROWS[:5], VALUES[:5]), reference_data=reference, type="ShapValues"
    )
    for row, values in zip(wide(ROWS[:5]), expected, strict=True):
        split = forest.column_sums(row, [0])
        np.testing.assert_allclose(split.contributions[0, CHOSEN], values[:-1], atol=2e-3)
        np.testing.assert_allclose(split.reference[0], values[-1], atol=2e-3)
