import pytest
import torch

from merging.data.split import (
    Split,
    check_subsets,
    lacking_labels,
    named_subsets,
    random_split,
    read_seeds,
    scaffold_split,
)
from models.errors import DataError
from models.task import TaskInfo

NAN = torch.nan


def split_of(*sizes: int) -> Split:
    return Split(*torch.arange(sum(sizes)).split(list(sizes)))


def test_scaffold_split_by_hand() -> None:
    # sizes 4, 3, 2, 1: the largest groups first, a group goes where it still fits
    scaffolds = ["a"] * 4 + ["b"] * 3 + ["c"] * 2 + ["d"]
    split = scaffold_split(scaffolds, train=0.7, valid=0.2)
    assert split.train.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert split.valid.tolist() == [7, 8]
    assert split.test.tolist() == [9]
    # ties: the group whose first molecule comes later goes first
    assert scaffold_split(["a", "b", "c"], train=0.34, valid=0.33).train.tolist() == [2]


def test_random_split_is_of_its_seed_alone() -> None:
    torch.manual_seed(0)
    first = random_split(40, 7)
    torch.manual_seed(1)
    again, other = random_split(40, 7), random_split(40, 8)
    assert [len(rows) for rows in vars(first).values()] == [32, 4, 4]
    assert sorted(torch.cat(list(vars(first).values())).tolist()) == list(range(40))
    assert torch.equal(first.test, again.test)
    assert not torch.equal(first.test, other.test)


def test_a_column_names_the_parts() -> None:
    cells = ["train", "Valid", " TEST ", "val", "validation", "Training"]
    expected = ["train", "valid", "test", "valid", "valid", "train"]
    assert named_subsets(cells, range(2, 8), {}) == expected
    with pytest.raises(DataError, match="line 3: got 'tset', expected train, valid or test"):
        named_subsets(["train", "tset"], [2, 3], {})
    with pytest.raises(DataError, match=r"line 2: got '0', expected train.*folds: \{valid: 0"):
        named_subsets(["0", "1"], [2, 3], {})


def test_a_column_numbers_the_folds() -> None:
    folds = {"valid": ("3",), "test": ("4", "0")}
    cells = ["0", "1", "2.0", "3.0", "4"]
    assert named_subsets(cells, range(2, 7), folds) == ["test", "train", "train", "valid", "test"]
    with pytest.raises(DataError, match="got folds 0, 1, 2, 3, expected also 4"):
        named_subsets(["0", "1", "2", "3"], range(2, 6), folds)
    with pytest.raises(DataError, match="line 4: got an empty cell, expected a fold"):
        named_subsets(["3", "4", "", "0"], range(2, 6), folds)


def check(split: Split, labels: list[list[float]]) -> dict[str, dict[str, str]]:
    columns = torch.tensor(labels).T
    info = TaskInfo(labels=tuple(f"y{k}" for k in range(len(labels))))
    lacking = lacking_labels(split, columns, info)
    check_subsets(split, lacking, info)
    return lacking


def test_a_split_that_can_be_measured_passes() -> None:
    assert check(split_of(2, 2, 2), [[0, 1, 0, 1, 0, 1]]) == {"train": {}, "valid": {}, "test": {}}
    lacking = check(split_of(2, 2, 2), [[0, 1, 0, 1, 0, 1], [0, 1, 0, 0, NAN, NAN]])
    assert lacking["valid"] == {"y1": "2 x 0, 0 x 1"}
    assert lacking["test"] == {"y1": "0 x 0, 0 x 1"}


def test_what_numbers_need() -> None:
    info = TaskInfo(labels=("a", "b"), target="regression")
    labels = torch.tensor([[1.0, 1], [2, 2], [3, 7], [4, 7], [5, NAN], [6, NAN]])
    lacking = lacking_labels(split_of(2, 2, 2), labels, info)
    assert lacking == {"train": {}, "valid": {"b": "2 x 7"}, "test": {"b": "no number"}}
    check_subsets(split_of(2, 2, 2), lacking, info)
    lacking = lacking_labels(split_of(2, 2, 2), labels.flip(0), info)
    with pytest.raises(
        DataError, match="in train b: no number, expected numbers that differ of ev"
    ):
        check_subsets(split_of(2, 2, 2), lacking, info)


def test_what_classes_need() -> None:
    info = TaskInfo(labels=("a", "b", "c"), target="multiclass")
    labels = torch.tensor([0, 1, 2, 0, -1, 1, 1, -1])
    lacking = lacking_labels(split_of(4, 2, 2), labels, info)
    assert lacking["train"] == {}
    assert lacking["valid"] == {"a": "0 rows", "c": "0 rows"}
    check_subsets(split_of(4, 2, 2), lacking, info)
    for rows, message in (
        ([0, 1, 0, 0, 1, 2, 1, 2], "in train c: 0 rows, expected rows of every class"),
        (
            [0, 1, 2, 0, -1, -1, 1, 1],
            "in valid a: 0 rows; b: 0 rows; c: 0 rows, expected rows of at",
        ),
    ):
        lacking = lacking_labels(split_of(4, 2, 2), torch.tensor(rows), info)
        with pytest.raises(DataError, match=message):
            check_subsets(split_of(4, 2, 2), lacking, info)


@pytest.mark.parametrize(
    ("split", "labels", "message"),
    [
        (
            split_of(4, 2, 0),
            [[0, 1, 0, 1, 0, 1]],
            "4 in train, 2 in valid, 0 in test, expected some in test too",
        ),
        (split_of(6, 0, 0), [[0, 1, 0, 1, 0, 1]], "expected some in valid and test too"),
        (
            split_of(2, 2, 2),
            [[0, 1, 0, 0, 0, 1]],
            "in valid y0: 2 x 0, 0 x 1, expected both classes of at least one label",
        ),
        (
            split_of(2, 2, 2),
            [[0, 1, 0, 1, 1, NAN]],
            "in test y0: 0 x 0, 1 x 1, expected both classes of at least one",
        ),
        (
            split_of(2, 2, 2),
            [[0, 1, 0, 1, 0, 1], [1, 1, 0, 1, 0, 1]],
            "in train y1: 0 x 0, 2 x 1, expected both classes of every label",
        ),
    ],
)
def test_another_is_refused(split: Split, labels: list[list[float]], message: str) -> None:
    with pytest.raises(DataError) as refused:
        check(split, labels)
    assert message in str(refused.value)


def test_digits_are_the_seeds_in_which_a_row_is_for_validation() -> None:
    cells, subsets = ["1", "", "25", "1.0", " "], ["train", "train", "train", "train", "test"]
    found = read_seeds(cells, range(2, 7), subsets)
    assert found == [{1}, set(), {2, 5}, {1}, set()]


@pytest.mark.parametrize(
    ("cells", "subsets", "message"),
    [
        (["1", "x"], ["train", "train"], "line 3: got 'x', expected digits, each a seed"),
        (["1,2", ""], ["train", "train"], "line 2: got '1,2', expected digits"),
        (["1", "2"], ["train", "test"], "line 3: got seeds 2 of a row of the test subset"),
        (["1", ""], ["train", "valid"], "line 3: got a row of the validation subset beside"),
        (["", ""], ["train", "test"], "got no seed in any row"),
    ],
)
def test_what_are_no_seeds_is_refused(cells: list[str], subsets: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_seeds(cells, [2, 3], subsets)
