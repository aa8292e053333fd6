from dataclasses import replace

import numpy as np
import pytest

from models.errors import ArtifactError
from models.experts.symmetric_trees import (
    _WEIGHTS,
    MAX_DEPTH,
    NEVER,
    SymmetricForest,
    split_leaves,
    sum_leaves,
    sum_leaves_of_one,
)
from tests.forests import brute_force_shapley, random_rows, random_symmetric
from tests.models.conftest import AsRun

WIDTH = 9


def by_hand(rows: np.ndarray, labels: int) -> np.ndarray:
    forest = random_symmetric(labels, WIDTH)
    sums = np.zeros((len(rows), labels))
    for label in range(labels):
        for tree in range(forest.starts[label], forest.starts[label + 1]):
            for k, row in enumerate(rows):
                answers = row[forest.columns[tree]] > forest.borders[tree]
                sums[k, label] += forest.leaves[tree, int(answers[0]) + 2 * int(answers[1])]
    return sums


@pytest.mark.parametrize("labels", [1, 3])
def test_kernels_sum_the_leaves_that_the_answers_lead_to(as_run: AsRun, labels: int) -> None:
    forest, rows = random_symmetric(labels, WIDTH), random_rows(7, WIDTH)
    trees = forest.columns, forest.borders, forest.leaves, forest.starts
    sums, single = (np.full((labels, 7), 99, np.int32) for _ in range(2))
    as_run(sum_leaves)(np.ascontiguousarray(rows.T), *trees, sums)
    for k, row in enumerate(rows):
        as_run(sum_leaves_of_one)(row, *trees, single[:, k])
    assert sums.T.tolist() == by_hand(rows, labels).tolist() == single.T.tolist()
    assert len(set(sums[0].tolist())) > 1


@pytest.mark.parametrize("count", [0, 1, 4, 65, 130])
def test_outputs_do_not_depend_on_the_other_molecules(count: int) -> None:
    forest, rows = random_symmetric(2, WIDTH), random_rows(count, WIDTH)
    outputs = forest.outputs(rows)
    assert (outputs.shape, outputs.dtype) == ((count, 2), np.float32)
    expected = by_hand(rows, 2) * forest.step + forest.base
    np.testing.assert_allclose(outputs, expected, rtol=1e-6)
    assert all(np.array_equal(forest.outputs(rows[k : k + 1])[0], outputs[k]) for k in range(count))


def test_filled_up_questions_are_never_answered_with_yes() -> None:
    forest = random_symmetric(1, WIDTH)
    never = replace(forest, borders=np.full_like(forest.borders, NEVER))
    rows = np.full((2, WIDTH), 1e38, np.float32)
    expected = forest.leaves[:, 0].sum() * forest.step[0] + forest.base[0]
    np.testing.assert_allclose(never.outputs(rows)[:, 0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": np.full((3, 2), 9, np.int16)}, "columns: got 9 to 9, expected columns of the"),
        ({"columns": np.full((3, 2), -1, np.int16)}, "columns: got -1 to -1"),
        ({"columns": np.zeros(3, np.int16)}, r"columns: got shape \(3,\), expected"),
        ({"leaves": np.zeros((3, 3), np.int16)}, r"leaves: got int16 \(3, 3\), expected int16"),
        ({"borders": np.zeros((3, 2))}, "borders: got float64"),
        ({"step": np.array([np.nan])}, "step: got numbers that are not finite"),
        ({"starts": np.array([0, 2], np.int32)}, "starts: got 0 to 2, expected 0 up to 3"),
    ],
)
def test_arrays_that_a_kernel_could_not_read_are_refused(
    changes: dict[str, np.ndarray], message: str
) -> None:
    forest = random_symmetric(1, WIDTH)
    forest.check(WIDTH, 1)
    with pytest.raises(ArtifactError, match=message):
        replace(forest, **changes).check(WIDTH, 1)


def test_too_many_trees_would_overflow_their_sum() -> None:
    forest, many = random_symmetric(1, WIDTH), 65_536
    arrays = {name: np.resize(getattr(forest, name), (many, size)) for name, size in SIZES.items()}
    with pytest.raises(ArtifactError, match="starts: got 65536 trees of a label"):
        replace(forest, **arrays, starts=np.array([0, many], np.int32)).check(WIDTH, 1)


SIZES = {"columns": 2, "borders": 2, "leaves": 4}


def deep(seed: int, depth: int = 5) -> SymmetricForest:
    """Four trees with more questions than columns, some of which zeros answer with yes."""
    random, forest = np.random.default_rng(seed), random_symmetric(1, WIDTH)
    return replace(
        forest,
        starts=np.array([0, 4], np.int32),
        columns=random.integers(0, WIDTH - 2, (4, depth)).astype(np.int16),
        borders=random.choice([-0.5, 0.5, 1.5], (4, depth)).astype(np.float32),
        leaves=random.integers(-30000, 30000, (4, 2**depth)).astype(np.int16),
    )


@pytest.mark.parametrize("seed", range(4))
def test_contributions_are_shapley_values(seed: int, as_run: AsRun) -> None:
    forest, row, found = deep(seed), random_rows(1, WIDTH, seed)[0], np.zeros(WIDTH)
    trees = forest.columns, forest.borders, forest.leaves
    total = as_run(split_leaves)(row, *trees, 0, 4, _WEIGHTS, found)
    np.testing.assert_allclose(
        found * forest.step[0], brute_force_shapley(forest, row)[0], atol=1e-5
    )
    split = forest.column_sums(row, [0])
    np.testing.assert_allclose(split.contributions[0], found * forest.step[0], atol=1e-12)
    np.testing.assert_allclose(split.reference, total * forest.step + forest.base)
    assert not split.contributions[0, row == 0].any()


def test_contributions_sum_to_the_outputs() -> None:
    """Of the deepest trees, and of a label without trees too."""
    row = random_rows(1, WIDTH)
    for forest in (deep(1, MAX_DEPTH), random_symmetric(3, WIDTH)):
        labels = range(forest.num_labels)[::-1]
        split = forest.column_sums(row[0], labels)
        whole = split.reference + split.contributions.sum(1)
        np.testing.assert_allclose(whole, forest.outputs(row)[0, [*labels]], rtol=1e-5)
