"""Boosted symmetric trees (Prokhorenkova et al. 2018, CatBoost).

All nodes of a level ask the same question, "is column f greater than border b?", so that a tree of
depth D is D questions and a table of 2^D leaves, whose index has the answers as its bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import factorial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from models.errors import ArtifactError
from models.experts.forest import ColumnSum, Doubles, Floats, Forest, check_columns
from models.ops.jit import kernel

NEVER = float(np.finfo(np.float32).max)
"""The border of a question whose answer is always no; it fills up trees of a smaller depth."""
STEPS = 32767
"""Leaves are stored as whole numbers from -STEPS to STEPS."""
MAX_DEPTH = 10
_MAX_TREES = 65_536  # of a label: the sum of their leaves fits 32 bits
_BLOCK = 64  # molecules
_FEW = 4  # molecules; fewer are evaluated one by one


@dataclass(frozen=True, eq=False)
class SymmetricForest(Forest):
    """T trees of depth D, whose leaves are summed.

    Attributes:
        columns: (T, D) int16, column of the fingerprint that a level asks for.
        borders: (T, D) float32; the answer is yes above the border.
        leaves: (T, 2^D) int16, in steps; indexed by the answers' bits, the first level lowest. Half
            a step is about 5e-6 of a logit, so that a sum over 500 trees is off by about 1e-4.
        step: (L,), the size of a label's step.
        base: (L,), added to the sum of a label's leaves.
    """

    dtypes: ClassVar[dict[str, Any]] = {
        "columns": np.int16,
        "borders": np.float32,
        "leaves": np.int16,
        "starts": np.int32,
        "step": np.float64,
        "base": np.float64,
        "scale": np.float64,
        "both_scale": np.float64,
    }

    columns: NDArray[np.int16]
    borders: Floats
    leaves: NDArray[np.int16]
    step: Doubles
    base: Doubles

    @property
    def num_trees(self) -> int:
        """Number of trees of all labels."""
        return len(self.columns)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Forest.shapes`."""
        if self.columns.ndim != 2 or not 0 < self.columns.shape[1] <= MAX_DEPTH:
            expected = f"expected (trees, depth), a depth of 1 to {MAX_DEPTH}"
            raise ArtifactError(f"columns: got shape {self.columns.shape}, {expected}")
        trees, depth = self.columns.shape
        questions = dict.fromkeys(("columns", "borders"), (trees, depth))
        return {
            **questions,
            "leaves": (trees, 2**depth),
            **dict.fromkeys(("step", "base"), (self.num_labels,)),
        }

    def check_trees(self, width: int) -> None:
        """See `Forest.check_trees`."""
        check_columns(self.columns, width)
        if (most := int(np.diff(self.starts).max())) >= _MAX_TREES:
            raise ArtifactError(f"starts: got {most} trees of a label, expected under {_MAX_TREES}")

    def outputs(self, rows: Floats) -> Floats:
        """See `Forest.outputs`."""
        sums = np.empty((self.num_labels, len(rows)), dtype=np.int32)
        trees = self.columns, self.borders, self.leaves, self.starts
        if len(rows) < _FEW:
            for k, row in enumerate(rows):
                sum_leaves_of_one(row, *trees, sums[:, k])
        else:
            for begin in range(0, len(rows), _BLOCK):
                block = np.ascontiguousarray(rows[begin : begin + _BLOCK].T)
                sum_leaves(block, *trees, sums[:, begin : begin + _BLOCK])
        return (sums.T * self.step + self.base).astype(np.float32)

    def column_sums(self, row: Floats, labels: Sequence[int]) -> ColumnSum:
        """See `Forest.column_sums`."""
        found = np.zeros((len(labels), len(row)))
        reference = np.empty(len(labels))
        trees = self.columns, self.borders, self.leaves
        for k, label in enumerate(labels):
            first, last = self.starts[label], self.starts[label + 1]
            total = split_leaves(row, *trees, first, last, _WEIGHTS, found[k])
            reference[k] = total * self.step[label] + self.base[label]
            found[k] *= self.step[label]
        return ColumnSum(reference, found)


def _shapley_weights(most: int) -> Doubles:
    """Return (most + 1, most): for m columns and a set of s others, the share s! (m - s - 1)! / m!
    of the orders in which a column comes right after the set."""
    weights = np.zeros((most + 1, most))
    for m in range(1, most + 1):
        for s in range(m):
            weights[m, s] = factorial(s) * factorial(m - s - 1) / factorial(m)
    return weights


_WEIGHTS = _shapley_weights(MAX_DEPTH)


@kernel
def sum_leaves(
    rows: Floats,
    columns: NDArray[np.int16],
    borders: Floats,
    leaves: NDArray[np.int16],
    starts: NDArray[np.int32],
    sums: NDArray[np.int32],
) -> None:
    """Sum the leaves of some molecules, in steps: see `SymmetricForest`.

    Args:
        rows: (F, G) float32, a column per molecule, so that a question is asked of all of them in
            one loop over adjacent numbers.
        columns, borders, leaves, starts: of the forest.
        sums: (L, G), written.
    """
    depth, count = columns.shape[1], rows.shape[1]
    leaf = np.empty(count, dtype=np.int32)
    for label in range(len(starts) - 1):
        sums[label] = 0
        for tree in range(starts[label], starts[label + 1]):
            leaf[:] = 0
            for level in range(depth):
                column, border = columns[tree, level], borders[tree, level]
                for k in range(count):
                    leaf[k] |= np.int32(rows[column, k] > border) << level
            for k in range(count):
                sums[label, k] += leaves[tree, leaf[k]]


@kernel
def sum_leaves_of_one(
    row: Floats,
    columns: NDArray[np.int16],
    borders: Floats,
    leaves: NDArray[np.int16],
    starts: NDArray[np.int32],
    sums: NDArray[np.int32],
) -> None:
    """Sum the leaves of one molecule, as `sum_leaves` does: row (F,) -> sums (L,)."""
    depth = columns.shape[1]
    for label in range(len(starts) - 1):
        total = np.int32(0)
        for tree in range(starts[label], starts[label + 1]):
            leaf = np.int64(0)
            for level in range(depth):
                leaf |= np.int64(row[columns[tree, level]] > borders[tree, level]) << level
            total += leaves[tree, leaf]
        sums[label] = total


@kernel
def split_leaves(
    row: Floats,
    columns: NDArray[np.int16],
    borders: Floats,
    leaves: NDArray[np.int16],
    first: int,
    last: int,
    weights: Doubles,
    found: Doubles,
) -> np.int64:
    """Add the Shapley values of a molecule's columns in some trees, in steps: see
    `Forest.column_sums`.

    Questions that the molecule answers as the reference does have no effect. The columns of the
    others, at most D, are a game whose 2^m values are leaves of the tree.

    Args:
        row: (F,) float32.
        columns, borders, leaves: of the forest.
        first, last: the trees.
        weights: from `_shapley_weights`.
        found: (F,), added to.

    Returns:
        The sum of the leaves that the reference reaches, in steps.
    """
    depth = columns.shape[1]
    players = np.empty(depth, dtype=np.int64)
    masks = np.empty(depth, dtype=np.int64)
    leaf_of = np.zeros(1 << depth, dtype=np.int64)
    size_of = np.zeros(1 << depth, dtype=np.int64)
    total = np.int64(0)
    for tree in range(first, last):
        start, count = np.int64(0), 0
        for level in range(depth):
            column, border = columns[tree, level], borders[tree, level]
            in_reference = np.float32(0) > border
            start |= np.int64(in_reference) << level
            if (row[column] > border) == in_reference:
                continue
            k = 0
            while k < count and players[k] != column:
                k += 1
            if k == count:
                players[k], masks[k] = column, 0
                count += 1
            masks[k] |= np.int64(1) << level
        total += leaves[tree, start]
        leaf_of[0] = start
        for k in range(count):
            for chosen in range(1 << k):
                leaf_of[chosen | 1 << k] = leaf_of[chosen] ^ masks[k]
                size_of[chosen | 1 << k] = size_of[chosen] + 1
        for k in range(count):
            for chosen in range(1 << count):
                if chosen >> k & 1:
                    continue
                before = np.int64(leaves[tree, leaf_of[chosen]])
                gain = np.int64(leaves[tree, leaf_of[chosen | 1 << k]]) - before
                found[players[k]] += weights[count, size_of[chosen]] * gain
    return total
