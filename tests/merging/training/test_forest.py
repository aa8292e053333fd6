import numpy as np
import pytest
import torch

from merging.config.training import BaggedConfig, ForestConfig, ForestKind
from merging.training.forest import check_forest_target, fingerprint_rows, fit_forest
from models.data.fingerprint import BITS, WIDTH
from models.errors import ConfigError, DataError
from tests.merging.conftest import molecules, tail_has

SETTINGS = ForestConfig(bagged=BaggedConfig(trees=5, min_leaf=1))
KINDS: tuple[ForestKind, ...] = ("boosted", "bagged")


def labels() -> torch.Tensor:
    """Has the tail an oxygen (unknown now and then); always 1; never known."""
    oxygen = torch.tensor([float(label) for label in tail_has("O")])
    oxygen[::7] = torch.nan
    ones = torch.ones(len(oxygen))
    return torch.stack([oxygen, ones, torch.full_like(ones, torch.nan)], dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_forest_learns_its_labels(kind: ForestKind) -> None:
    if kind == "boosted":
        pytest.importorskip("catboost", reason="CatBoost is not installed (g-merging[trees])")
    rows, train = fingerprint_rows(molecules(), "tails"), torch.arange(60)
    assert rows.shape == (80, WIDTH)
    given = rows, labels(), train, "multilabel", kind
    forest = fit_forest(*given, ("ecfp4", "descriptors"), SETTINGS, 0)  # type: ignore[arg-type]
    forest.check(WIDTH, 3)
    outputs = forest.outputs(rows[60:])
    truth = np.array([int(label) for label in tail_has("O")])[60:]
    assert outputs[truth == 1, 0].mean() > outputs[truth == 0, 0].mean() + 2
    np.testing.assert_allclose(outputs[:, 1], np.log(60.5 / 0.5), rtol=1e-6)
    np.testing.assert_allclose(outputs[:, 2], 0, atol=1e-6)
    again = fit_forest(*given, ("ecfp4", "descriptors"), SETTINGS, 0)  # type: ignore[arg-type]
    assert np.array_equal(again.outputs(rows), forest.outputs(rows))
    only = fit_forest(*given, ("descriptors",), SETTINGS, 0)  # type: ignore[arg-type]
    blind = rows.copy()
    blind[:, :BITS] = 0
    assert np.array_equal(only.outputs(blind), only.outputs(rows))


def test_a_regression_with_one_value_is_constant() -> None:
    rows = np.zeros((3, WIDTH), dtype=np.float32)
    values = torch.tensor([[2.5, torch.nan]] * 3)
    forest = fit_forest(
        rows, values, torch.arange(3), "regression", "bagged", ("ecfp4",), SETTINGS, 0
    )
    assert forest.outputs(rows).tolist() == [[2.5, 0.0]] * 3


def test_other_targets_are_refused() -> None:
    with pytest.raises(ConfigError, match="got a task of target 'multiclass', expected multilabel"):
        check_forest_target("multiclass")


def test_unreadable_molecules_are_named() -> None:
    with pytest.raises(DataError, match="tails: got 'C1'"):
        fingerprint_rows(["C", "C1"], "tails")
