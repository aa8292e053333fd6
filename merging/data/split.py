"""Splits of a data set into training, validation and test subsets."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from merging.data.labels import quoted
from models.errors import DataError
from models.task import Target, TaskInfo

TRAIN, VALID = 0.8, 0.1
"""Shares of the training and validation subsets; the rest is the test subset."""
_SHOWN = 4
Subset = Literal["train", "valid", "test"]
SUBSETS: tuple[Subset, ...] = ("train", "valid", "test")
"""The subsets of a task's rows: for training, for selection, and for reported scores."""
SUBSET_NAMES = {
    "train": ("train", "training", "trn", "train_val", "trainval"),
    "valid": ("valid", "val", "validation", "dev"),
    "test": ("test", "testing", "tst", "holdout", "hold-out"),
}
"""The names that a column may use for the three subsets, in lower case."""


@dataclass(frozen=True)
class Split:
    """Row numbers of the training, validation and test subsets, (n,) int64 each."""

    train: Tensor
    valid: Tensor
    test: Tensor


def scaffold_split(scaffolds: Sequence[str], train: float = TRAIN, valid: float = VALID) -> Split:
    """Split molecules by their Bemis-Murcko scaffold, deterministically (Hu et al. 2020).

    The molecules of a scaffold stay together. Scaffolds are assigned in descending order of their
    numbers of molecules, equal ones in descending order of their first molecule: to the training
    subset if they fit, else to the validation subset if they fit, else to the test subset.

    Args:
        scaffolds: the scaffold of every molecule.
        train: share of the training subset.
        valid: share of the validation subset.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for k, scaffold in enumerate(scaffolds):
        groups[scaffold].append(k)
    rows: tuple[list[int], list[int], list[int]] = ([], [], [])
    for group in sorted(groups.values(), key=lambda rows: (len(rows), rows[0]), reverse=True):
        if len(rows[0]) + len(group) <= train * len(scaffolds):
            rows[0].extend(group)
        elif len(rows[0]) + len(rows[1]) + len(group) <= (train + valid) * len(scaffolds):
            rows[1].extend(group)
        else:
            rows[2].extend(group)
    return Split(*(torch.tensor(numbers, dtype=torch.int64) for numbers in rows))


def random_split(rows: int, seed: int, train: float = TRAIN, valid: float = VALID) -> Split:
    """Split rows at random, as determined by the seed alone.

    Args:
        rows: number of rows.
        seed: seed of the permutation.
        train: share of the training subset.
        valid: share of the validation subset; the rest is the test subset.

    Returns:
        The three subsets, row numbers in ascending order.
    """
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    sizes = round(train * rows), round((train + valid) * rows)
    return Split(*(subset.sort().values for subset in order.tensor_split(sizes)))


def named_subsets(
    cells: Sequence[str], lines: Sequence[int], folds: Mapping[str, Sequence[str]]
) -> list[str]:
    """Read the subset of every row, "train", "valid" or "test", from a column of a table.

    Args:
        cells: the column: names of subsets (`SUBSET_NAMES`), or of folds.
        lines: the line of the file at which every row begins, for error messages.
        folds: the folds that form "valid" and "test", all others form "train"; empty where the
            column names the subsets themselves.

    Raises:
        DataError: a cell names no subset, a cell is empty where folds are expected, or a fold does
            not occur in the column. The message names the line or the folds.
    """
    texts = [cell_text(cell) for cell in cells]
    if folds:
        subset_of = {cell_text(name): subset for subset, names in folds.items() for name in names}
        if absent := [name for name in subset_of if name not in texts]:
            folds_found = ", ".join(dict.fromkeys(texts))
            raise DataError(f"got folds {folds_found}, expected also {', '.join(absent)} (`folds`)")
        for text, line in zip(texts, lines, strict=True):
            if not text:
                raise DataError(f"line {line}: got an empty cell, expected a fold")
        return [subset_of.get(text, "train") for text in texts]
    subset_of = {name: subset for subset, names in SUBSET_NAMES.items() for name in names}
    for text, cell, line in zip(texts, cells, lines, strict=True):
        if text not in subset_of:
            remedy = "where these are folds, say which are which: `folds: {valid: 0, test: 1}`"
            got = f"line {line}: got {quoted(cell)}"
            raise DataError(f"{got}, expected train, valid or test; {remedy}")
    return [subset_of[text] for text in texts]


def read_seeds(
    cells: Sequence[str], lines: Sequence[int], subsets: Sequence[str]
) -> list[frozenset[int]]:
    """Read for every row the seeds in whose validation subset it is, from a column of a table.

    Args:
        cells: the column; every digit of a cell is a seed, an empty cell is none.
        lines: the line of the file at which every row begins, for error messages.
        subsets: the subset of every row (`named_subsets`).

    Raises:
        DataError: a cell holds something else than digits, a row that is not of the training subset
            has a seed or is for validation whatever the seed, or no row has a seed. The message
            names the line.
    """
    seeds = []
    for cell, line, subset in zip(cells, lines, subsets, strict=True):
        text = cell_text(cell)
        if text and not (text.isascii() and text.isdecimal()):
            raise DataError(f"line {line}: got {quoted(cell)}, expected digits, each a seed")
        if subset == "valid":
            got = f"line {line}: got a row of the validation subset beside a column of seeds"
            raise DataError(f"{got}, expected training and test rows")
        if text and subset != "train":
            got = f"line {line}: got seeds {text} of a row of the {subset} subset"
            raise DataError(f"{got}, expected seeds of training rows alone")
        seeds.append(frozenset(map(int, text)))
    if not any(seeds):
        raise DataError("got no seed in any row, expected digits in the training rows")
    return seeds


def cell_text(cell: str) -> str:
    """Normalise a cell of a split column: no surrounding white space, lower case, and no trailing
    `.0`, which pandas appends to integers in a column with missing values."""
    return cell.strip().casefold().removesuffix(".0")


_NEEDED: Mapping[Target, str] = {
    "multilabel": "both classes of {} label",
    "multiclass": "rows of {} class",
    "regression": "numbers that differ of {} label",
}
"""What a subset must have of every label or of at least one (of `multiclass`, of a class)."""


def lacking_labels(split: Split, labels: Tensor, info: TaskInfo) -> dict[str, dict[str, str]]:
    """Return for every subset the labels that cannot be learnt or measured in it: labels without
    both classes, classes without rows, and regression labels with fewer than two different values.

    Args:
        split: the split of the G rows.
        labels: (G, L), NaN where missing; for `multiclass` (G,) integers, -1 where missing.
        info: the task.

    Returns:
        {subset: {label: the values that there are, in words}}.
    """
    return {subset: _lacking(labels[rows], info) for subset, rows in vars(split).items()}


def check_subsets(split: Split, lacking: Mapping[str, Mapping[str, str]], info: TaskInfo) -> None:
    """Check that a task can be trained and measured with a split.

    Args:
        split: the split of the rows.
        lacking: the labels that cannot be learnt or measured in a subset (`lacking_labels`).
        info: the task.

    Raises:
        DataError: a subset is empty, a label cannot be learnt from the training subset, or no label
            can be measured on the validation or the test subset.
    """
    sizes_of = [f"{len(rows)} in {subset}" for subset, rows in vars(split).items()]
    sizes = f"molecules: {', '.join(sizes_of)}"
    if empty := [subset for subset, rows in vars(split).items() if not len(rows)]:
        raise DataError(f"got {sizes}, expected some in {' and '.join(empty)} too")
    for subset, counts in lacking.items():
        if counts and (subset == "train" or len(counts) == len(info.labels)):
            shown = "; ".join(f"{name}: {count}" for name, count in list(counts.items())[:_SHOWN])
            more = f"; and {len(counts) - _SHOWN} labels more" if len(counts) > _SHOWN else ""
            whom = "every" if subset == "train" else "at least one"
            got = f"got {sizes}; and in {subset} {shown}{more}"
            raise DataError(f"{got}, expected {_NEEDED[info.target].format(whom)}")


def _lacking(labels: Tensor, info: TaskInfo) -> dict[str, str]:
    if info.target == "multiclass":
        present = set(labels.tolist())
        return {name: "0 rows" for k, name in enumerate(info.labels) if k not in present}
    if info.target == "regression":
        columns = [column[~column.isnan()] for column in labels.T]
        named = zip(info.labels, columns, strict=True)
        return {name: _numbers(known) for name, known in named if len(known.unique()) < 2}
    ones, zeros = (labels == 1).sum(0).tolist(), (labels == 0).sum(0).tolist()
    pairs = zip(info.labels, zeros, ones, strict=True)
    return {name: f"{zero} x 0, {one} x 1" for name, zero, one in pairs if not (zero and one)}


def _numbers(known: Tensor) -> str:
    return f"{len(known)} x {float(known[0]):g}" if len(known) else "no number"
