"""Molecules by number, and rows that are left out as test molecules of another task."""

import torch

from merging.data.molecule_split import molecule_numbers, split_record, without_molecules
from merging.data.split import Split
from models.task import TaskInfo


def rows(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int64)


def test_equal_smiles_have_equal_numbers_in_every_table() -> None:
    pairs = [("C[C@H](N)O", "CC(N)O"), ("C[C@@H](N)O", "CC(N)O"), ("CCO", "CCO")]
    numbers = molecule_numbers(pairs)
    assert len(numbers.unique()) == 4
    assert numbers[0, 1] == numbers[1, 1] != numbers[2, 1]
    assert numbers[2, 0] == numbers[2, 1]
    assert torch.equal(molecule_numbers(pairs[::-1]), numbers.flip(0))
    assert molecule_numbers([]).shape == (0, 2)
    # As in a cache that another process wrote.
    assert int(numbers[2, 0]) == 7863297522579887043


def test_rows_are_left_out_of_training_and_validation_and_counted_by_task() -> None:
    split = Split(train=rows(0, 1, 2), valid=rows(3, 4), test=rows(5, 6))
    molecules = rows(10, 11, 12, 13, 11, 10, 16)
    tests = {"first": rows(11, 99), "second": rows(10, 11), "third": rows(7)}
    rest, counts = without_molecules(split, molecules, tests)
    assert (rest.train.tolist(), rest.valid.tolist()) == ([2], [3])
    assert rest.test.tolist() == [5, 6]
    assert counts == {
        "first": {"train": 1, "valid": 1},
        "second": {"train": 2, "valid": 1},
        "third": {"train": 0, "valid": 0},
    }


def test_rows_outside_the_split_are_in_no_subset() -> None:
    split = Split(train=rows(0), valid=rows(2), test=rows(3))
    molecules = torch.stack([rows(1, 1, 2, 2), rows(1, 1, 2, 2)], 1)
    labels = torch.tensor([[0.0], [1.0], [1.0], [1.0]])
    record = split_record(split, "as said", molecules, labels, TaskInfo(labels=("y",)))
    assert record["parts"] == {"train": 1, "valid": 1, "test": 1}
    assert record["repeated"] == {"molecules": 2, "contradictory": 1, "across_parts": 1}
    assert record["not_measured"] == {"valid": ["y"], "test": ["y"]}
