from dataclasses import replace

import numpy as np
import pytest

from models.errors import ArtifactError
from models.experts.binary_trees import BinaryForest, average_leaves, split_average
from tests.forests import binary_forest, brute_force_shapley, random_binary, random_rows
from tests.models.conftest import AsRun

WIDTH = 4
ROWS = np.array([[0, 0, 0, 0], [1, 0, 0, 1], [0, 0, 0, 2]], dtype=np.float32)
MEANS = [(0.1 + 0.5) / 2, (0.6 + 0.5) / 2, (0.9 + 0.5) / 2]


def test_kernel_follows_the_answers(as_run: AsRun) -> None:
    forest, means = binary_forest(3), np.full((3, 3), 99.0)
    trees = forest.columns, forest.numbers, forest.right, forest.roots, forest.starts
    as_run(average_leaves)(ROWS, *trees, means)
    np.testing.assert_allclose(means[:, 0], MEANS, rtol=1e-6)
    np.testing.assert_allclose(means[:, 1], MEANS, rtol=1e-6)
    assert means[:, 2].tolist() == [0, 0, 0]  # it has no trees


def test_shares_become_logits_and_a_label_without_trees_is_constant() -> None:
    outputs = binary_forest(3).outputs(ROWS)
    np.testing.assert_allclose(outputs[:, 1], np.log(MEANS) - np.log1p(-np.array(MEANS)), rtol=1e-5)
    np.testing.assert_allclose(outputs[:, 2], 0.7, rtol=1e-6)


def test_values_of_a_regression_stay_as_they_are() -> None:
    np.testing.assert_allclose(binary_forest(1, clip=0.0).outputs(ROWS)[:, 0], MEANS, rtol=1e-6)


def test_a_sure_forest_is_clipped() -> None:
    forest = binary_forest()
    sure = replace(forest, numbers=np.where(forest.right > 0, forest.numbers, np.float32(1)))
    np.testing.assert_allclose(sure.outputs(ROWS), np.log(999), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": np.full(6, 4, np.int16)}, "columns: got 4 to 4, expected columns of the"),
        ({"right": np.array([5, 2, 0, 0, 0, 0], np.uint16)}, "right: got a child outside"),
        ({"right": np.array([4, 2, 0, 0, 0, 1], np.uint16)}, "right: got a child outside"),
        ({"right": np.zeros(5, np.uint16)}, r"right: got uint16 \(5,\), expected uint16 \(6,\)"),
        ({"roots": np.array([0, 7], np.int32)}, "roots: got trees that overlap"),
        ({"roots": np.array([1, 5], np.int32)}, "roots: got trees that overlap"),
        ({"clip": np.array([0.5])}, "clip: got numbers outside"),
        ({"starts": np.array([0, 3], np.int32)}, "starts: got 0 to 3, expected 0 up to 2"),
        ({"numbers": np.full(6, np.inf, np.float32)}, "numbers: got numbers that are not finite"),
    ],
)
def test_arrays_that_a_kernel_could_not_read_are_refused(
    changes: dict[str, np.ndarray], message: str
) -> None:
    binary_forest().check(WIDTH, 1)
    with pytest.raises(ArtifactError, match=message):
        replace(binary_forest(), **changes).check(WIDTH, 1)


def test_a_forest_without_trees() -> None:
    none = {name: getattr(binary_forest(), name)[:0] for name in ("columns", "numbers", "right")}
    empty: BinaryForest = replace(
        binary_forest(), **none, roots=np.empty(0, np.int32), starts=np.zeros(2, np.int32)
    )
    empty.check(WIDTH, 1)
    np.testing.assert_allclose(empty.outputs(ROWS), 0.3, rtol=1e-6)
    nodes = replace(binary_forest(), roots=np.empty(0, np.int32), starts=np.zeros(2, np.int32))
    with pytest.raises(ArtifactError, match="roots: got none"):
        nodes.check(WIDTH, 1)


@pytest.mark.parametrize("seed", range(4))
def test_contributions_are_shapley_values(seed: int, as_run: AsRun) -> None:
    forest = random_binary(7, seed=seed)
    row = random_rows(1, 7, seed)[0]
    found = np.zeros((2, 7))
    trees = forest.columns, forest.numbers, forest.right
    for label in range(2):
        roots = forest.roots[4 * label : 4 * label + 4]
        as_run(split_average)(row, *trees, roots, len(forest.columns), found[label])
    np.testing.assert_allclose(found / 4, brute_force_shapley(forest, row), atol=1e-6)
    split = forest.column_sums(row, [1])
    np.testing.assert_allclose(split.contributions[0], found[1] / 4, atol=1e-7)
    assert not split.contributions[0, row == 0].any()


@pytest.mark.parametrize("clip", [0.0, 1e-3, 0.4])
def test_contributions_sum_to_the_outputs(clip: float) -> None:
    """Of a label without trees and of clipped shares too."""
    forest = binary_forest(3, clip=clip)
    for row in ROWS:
        split = forest.column_sums(row, [2, 0])
        expected = forest.outputs(row[None])[0, [2, 0]]
        np.testing.assert_allclose(
            split.reference + split.contributions.sum(1), expected, rtol=1e-6
        )


def test_logits_are_split_as_their_shares_are() -> None:
    shares = binary_forest(1, clip=0.0).column_sums(ROWS[1], [0]).contributions[0]
    logits = binary_forest(1).column_sums(ROWS[1], [0]).contributions[0]
    slope = logits[0] / shares[0]
    assert slope > 0
    np.testing.assert_allclose(logits, slope * shares)
