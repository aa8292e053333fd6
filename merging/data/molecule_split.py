"""The subsets of a table of molecules: drawn, read from a column, or of a seed; and which molecules
they share."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merging.data.labels import parse_number
from merging.data.molecule_tables import DatasetSpec, MoleculeTable
from merging.data.split import (
    SUBSETS,
    TRAIN,
    VALID,
    Split,
    check_subsets,
    lacking_labels,
    random_split,
    scaffold_split,
)
from models.errors import DataError
from models.task import TaskInfo

_SEEDS_TRIED = 100


def split_rows(
    spec: DatasetSpec, table: MoleculeTable, kept: Sequence[int], scaffolds: Sequence[str]
) -> tuple[Split, str]:
    """Split the kept rows of a table as its description demands; return the split and its
    description in words. Where validation rows depend on the seed, they are in the training
    subset (`seed_rows`)."""
    method = "scaffold" if spec.split == "scaffold" else f"random, seed {spec.split_seed}"
    if table.subsets is None:
        return _draw(spec, scaffolds, TRAIN, VALID), method
    names = [table.subsets[k] for k in kept]
    rows_of = {subset: [k for k, name in enumerate(names) if name == subset] for subset in SUBSETS}
    train, valid, test = (torch.tensor(rows, dtype=torch.int64) for rows in rows_of.values())
    description = f"by column {spec.split_column!r}"
    if table.seeds is not None:
        description += f", validation by column {spec.validation_seeds_column!r}"
        return Split(train, valid, test), description
    if len(valid) or not len(train):
        return Split(train, valid, test), description
    drawn = _draw(spec, [scaffolds[k] for k in train], 8 / 9, 1 / 9)
    # Scaffolds that fit into neither share are in the third subset.
    valid = train[torch.cat([drawn.valid, drawn.test]).sort().values]
    description += f", validation drawn from its training rows, {method}"
    return Split(train[drawn.train], valid, test), description


def _draw(spec: DatasetSpec, scaffolds: Sequence[str], train: float, valid: float) -> Split:
    if spec.split == "scaffold":
        return scaffold_split(scaffolds, train, valid)
    return random_split(len(scaffolds), spec.split_seed, train, valid)


def seed_rows(table: MoleculeTable, kept: Sequence[int]) -> dict[int, Tensor]:
    """Return by seed the validation rows, as numbers among the kept rows, (n,) int64; empty where
    the split does not depend on the seed."""
    if table.seeds is None:
        return {}
    of_row = [table.seeds[k] for k in kept]
    return {
        seed: torch.tensor([k for k, seeds in enumerate(of_row) if seed in seeds])
        for seed in sorted(frozenset[int]().union(*of_row))
    }


def check_split(
    file: Path, spec: DatasetSpec, split: Split, labels: Tensor, info: TaskInfo
) -> None:
    """Check that a task can be trained and measured with a split. Raises DataError: it cannot; the
    message suggests another split."""
    try:
        check_subsets(split, lacking_labels(split, labels, info), info)
    except DataError as error:
        origin = f"column {spec.split_column!r}" if spec.split_column else f"split {spec.split}"
        other = "another column" if spec.split_column else "a `split_column` of your own"
        seed = _working_seed(labels, info)
        instead = " and no `split_column`" if spec.split_column else ""
        random = f"`split: random` with `split_seed: {seed}`{instead}, "
        remedy = f"try {'' if seed is None else random}{other}, or more rows"
        if info.target == "multiclass" and None not in map(parse_number, info.labels):
            remedy += "; numbers that are no classes are `target: regression`"
        raise DataError(f"{file}, {origin}: {error}; {remedy}") from error


def _working_seed(labels: Tensor, info: TaskInfo) -> int | None:
    """Return the first seed whose random split passes `check_subsets`, None if none does."""
    for seed in range(_SEEDS_TRIED):
        split = random_split(len(labels), seed)
        with suppress(DataError):
            check_subsets(split, lacking_labels(split, labels, info), info)
            return seed
    return None


def molecule_numbers(pairs: Sequence[tuple[str, str]]) -> Tensor:
    """Number molecules by a hash of their SMILES, so that those of different tables can be
    compared.

    Args:
        pairs: for each of G molecules the canonical SMILES, and that without stereochemistry.

    Returns:
        (G, 2) int64; two of 100,000 molecules get the same number with a probability of 3e-10.
    """
    numbers = [[_hash(text) for text in pair] for pair in pairs]
    return torch.tensor(numbers, dtype=torch.int64).view(-1, 2)


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def split_record(
    split: Split, description: str, molecules: Tensor, labels: Tensor, info: TaskInfo
) -> dict[str, Any]:
    """Return the entries of a `MoleculeDataset.record` that depend on the split.

    Args:
        split: of the G rows.
        description: of the split, in words.
        molecules: (G, 2), see `molecule_numbers`.
        labels, info: of the task.
    """
    lacking = lacking_labels(split, labels, info)
    return {
        "split": description,
        "parts": {subset: len(rows) for subset, rows in vars(split).items()},
        "not_measured": {subset: list(lacking[subset]) for subset in ("valid", "test")},
        "repeated": _repeated(molecules[:, 0].tolist(), labels, split),
    }


def _repeated(molecules: Sequence[int], labels: Tensor, split: Split) -> dict[str, int]:
    """Count the molecules (canonical SMILES) that occur in several rows: `molecules`, and of these
    `contradictory`, with different values of a label, and `across_parts`, in several subsets."""
    rows_of: dict[int, list[int]] = {}
    for k, molecule in enumerate(molecules):
        rows_of.setdefault(molecule, []).append(k)
    several = [rows for rows in rows_of.values() if len(rows) > 1]
    subset_of = {row: subset for subset, rows in vars(split).items() for row in rows.tolist()}
    if not labels.is_floating_point():  # classes
        labels = torch.where(labels >= 0, labels.float(), torch.nan).unsqueeze(1)
    subsets = [{subset_of[row] for row in rows if row in subset_of} for rows in several]
    return {
        "molecules": len(several),
        "contradictory": sum(_differ(labels[rows]) for rows in several),
        "across_parts": sum(len(found) > 1 for found in subsets),
    }


def _differ(labels: Tensor) -> bool:
    """Return True if a label has different values in the rows of `labels` (n, L)."""
    greatest, least = labels.nan_to_num(-torch.inf).amax(0), labels.nan_to_num(torch.inf).amin(0)
    return bool((greatest > least).any())


def without_molecules(
    split: Split, molecules: Tensor, tests: Mapping[str, Tensor]
) -> tuple[Split, dict[str, dict[str, int]]]:
    """Leave out training and validation rows whose molecule is a test molecule of another task.

    Args:
        split: of the G rows.
        molecules: (G,), their molecules (`molecule_numbers`).
        tests: by name of the other task, its test molecules.

    Returns:
        The rest of the split, and by task the number of rows of "train" and "valid" that were left
        out for it; a row may be counted for several tasks.
    """
    learnt = {"train": split.train, "valid": split.valid}
    known = {
        task: {k: torch.isin(molecules[rows], test) for k, rows in learnt.items()}
        for task, test in tests.items()
    }
    kept = {
        subset: rows[~torch.stack([found[subset] for found in known.values()]).any(0)]
        for subset, rows in learnt.items()
    }
    counts = {
        task: {subset: int(rows.sum()) for subset, rows in found.items()}
        for task, found in known.items()
    }
    return Split(kept["train"], kept["valid"], split.test), counts
