"""Bagged binary trees (Breiman 2001, random forests).

The nodes of a tree are stored in the order in which they are reached when left is taken first: the
left child of a node is the next one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from models.errors import ArtifactError
from models.experts.forest import ColumnSum, Doubles, Floats, Forest, check_columns
from models.ops.jit import kernel

_NO_CHANGE = 1e-9
"""Mean probabilities that differ by less are equal: rounding made the difference."""


@dataclass(frozen=True, eq=False)
class BinaryForest(Forest):
    """T trees of N nodes in total, whose leaves are averaged.

    Attributes:
        columns: (N,) int16, column of the fingerprint that a node asks for.
        numbers: (N,) float32, border of a node, whose right child is taken above it; value of a
            leaf: probability of class 1, or a value in the units of the label.
        right: (N,) uint16, distance to the right child; 0 marks a leaf.
        roots: (T,) int32, first node of a tree.
        base: (L,), output of a label without trees.
        clip: (L,); above 0, the mean of a label's leaves is a probability, which is clipped to
            `clip` ... `1 - clip` and turned into a logit; at 0 it is a value.
    """

    dtypes: ClassVar[dict[str, Any]] = {
        "columns": np.int16,
        "numbers": np.float32,
        "right": np.uint16,
        "roots": np.int32,
        "starts": np.int32,
        "base": np.float64,
        "clip": np.float64,
        "scale": np.float64,
        "both_scale": np.float64,
    }

    columns: NDArray[np.int16]
    numbers: Floats
    right: NDArray[np.uint16]
    roots: NDArray[np.int32]
    base: Doubles
    clip: Doubles

    @property
    def num_trees(self) -> int:
        """Number of trees of all labels."""
        return len(self.roots)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Forest.shapes`."""
        return {
            **dict.fromkeys(("columns", "numbers", "right"), (self.columns.size,)),
            "roots": (self.roots.size,),
            **dict.fromkeys(("base", "clip"), (self.num_labels,)),
        }

    def check_trees(self, width: int) -> None:
        """See `Forest.check_trees`. Children come after their node and before the next tree, so
        that every path ends."""
        check_columns(self.columns, width)
        if not self.num_trees:
            if self.columns.size:
                raise ArtifactError("roots: got none, expected a root for the nodes")
            return
        ends = np.append(self.roots[1:], len(self.columns))
        if self.roots[0] != 0 or (ends <= self.roots).any():
            raise ArtifactError("roots: got trees that overlap, expected them one after the other")
        nodes = np.arange(len(self.columns))
        end = np.repeat(ends, ends - self.roots)
        inner = self.right > 0
        if (nodes[inner] + self.right[inner] >= end[inner]).any():
            raise ArtifactError("right: got a child outside of its tree")
        if ((self.clip < 0) | (self.clip >= 0.5)).any():
            raise ArtifactError("clip: got numbers outside of 0 to 0.5")

    def outputs(self, rows: Floats) -> Floats:
        """See `Forest.outputs`."""
        means = np.empty((len(rows), self.num_labels))
        trees = self.columns, self.numbers, self.right, self.roots, self.starts
        average_leaves(np.ascontiguousarray(rows), *trees, means)
        known = np.diff(self.starts) > 0
        values = np.where(known, means, self.base)
        logits = known & (self.clip > 0)
        values[:, logits] = _clipped_logit(values[:, logits], self.clip[logits])
        return values.astype(np.float32)

    def column_sums(self, row: Floats, labels: Sequence[int]) -> ColumnSum:
        """See `Forest.column_sums`.

        The mean of the leaves is split by Shapley values. Where its logit is the output, all
        contributions are multiplied by the slope of the logit between reference and molecule (the
        rescale rule of Shrikumar et al. 2017), so that they sum to the difference of the logits.
        """
        found = np.zeros((len(labels), len(row)))
        reference = np.empty(len(labels))
        most = int(np.diff(np.append(self.roots, len(self.columns))).max(initial=1))
        for k, label in enumerate(labels):
            first, last = self.starts[label], self.starts[label + 1]
            if first == last:
                reference[k] = self.base[label]
                continue
            trees = self.columns, self.numbers, self.right, self.roots[first:last]
            start = split_average(row, *trees, most, found[k]) / (last - first)
            found[k] /= last - first
            reference[k] = start
            if (clip := self.clip[label]) > 0:
                reference[k] = _clipped_logit(start, clip)
                end = start + found[k].sum()
                gain = _clipped_logit(end, clip) - reference[k]
                found[k] *= gain / (end - start) if abs(end - start) > _NO_CHANGE else 0
        return ColumnSum(reference, found)


def _clipped_logit(shares: Any, clip: Any) -> Any:
    """Clip probabilities to `clip` ... `1 - clip` and return their logits."""
    shares = np.clip(shares, clip, 1 - clip)
    return np.log(shares / (1 - shares))


@kernel
def average_leaves(
    rows: Floats,
    columns: NDArray[np.int16],
    numbers: Floats,
    right: NDArray[np.uint16],
    roots: NDArray[np.int32],
    starts: NDArray[np.int32],
    means: Doubles,
) -> None:
    """Average the leaves of some molecules over the trees of every label: see `BinaryForest`.

    Args:
        rows: (G, F) float32.
        columns, numbers, right, roots, starts: of the forest.
        means: (G, L), written; 0 for a label without trees.
    """
    for label in range(len(starts) - 1):
        first, last = starts[label], starts[label + 1]
        for k in range(len(rows)):
            means[k, label] = 0.0
        for tree in range(first, last):
            root = roots[tree]
            for k in range(len(rows)):
                node = root
                while right[node] > 0:
                    above = rows[k, columns[node]] > numbers[node]
                    node += np.int64(right[node]) if above else 1
                means[k, label] += numbers[node]
        if last > first:
            for k in range(len(rows)):
                means[k, label] /= last - first


@kernel
def split_average(
    row: Floats,
    columns: NDArray[np.int16],
    numbers: Floats,
    right: NDArray[np.uint16],
    roots: NDArray[np.int32],
    most: int,
    found: Doubles,
) -> float:
    """Add the Shapley values of a molecule's columns in the sum of some trees: see
    `Forest.column_sums`.

    Where molecule and reference answer a question differently, the path splits: one side needs the
    column from the molecule, the other from the reference. A leaf that needs u columns from the
    molecule and v from the reference is a game with value 1 where all of the former and none of
    the latter are in the set. Its Shapley values are (u - 1)! v! / (u + v)! for the former and
    -u! (v - 1)! / (u + v)! for the latter (Lundberg et al. 2020).

    Args:
        row: (F,) float32.
        columns, numbers, right: of the forest.
        roots: of the trees.
        most: nodes of a tree; no path and no pile is longer.
        found: (F,), added to.

    Returns:
        The sum of the leaves that the reference reaches.
    """
    path = np.empty(most + 1, dtype=np.int64)
    of_molecule = np.empty(most + 1, dtype=np.bool_)
    pile = np.empty((most + 1, 4), dtype=np.int64)  # node, length of its path, last step
    total = 0.0
    for root in roots:
        pile[0, 0], pile[0, 1], pile[0, 2], pile[0, 3] = root, 0, 0, 0
        height = 1
        while height:
            height -= 1
            node, length = pile[height, 0], pile[height, 1]
            if length:
                path[length - 1], of_molecule[length - 1] = pile[height, 2], pile[height, 3] > 0
            while right[node] > 0:
                column, border = np.int64(columns[node]), numbers[node]
                above, reference_above = row[column] > border, np.float32(0) > border
                if above != reference_above:
                    k = 0
                    while k < length and path[k] != column:
                        k += 1
                    if k == length:
                        other = node + (np.int64(right[node]) if reference_above else 1)
                        pile[height, 0], pile[height, 1] = other, length + 1
                        pile[height, 2], pile[height, 3] = column, 0
                        height += 1
                        path[length], of_molecule[length] = column, True
                        length += 1
                    elif not of_molecule[k]:
                        above = reference_above
                node += np.int64(right[node]) if above else 1
            taken = 0
            for k in range(length):
                taken += of_molecule[k]
            if taken == 0:
                total += numbers[node]
            if length == 0:
                continue
            left = length - taken
            # (u + v)! as the exponential of a sum of logarithms: paths may have 100 columns
            log_all = math.lgamma(length + 1.0)
            plus = (
                math.exp(math.lgamma(taken) + math.lgamma(left + 1.0) - log_all) if taken else 0.0
            )
            minus = (
                math.exp(math.lgamma(taken + 1.0) + math.lgamma(left) - log_all) if left else 0.0
            )
            for k in range(length):
                found[path[k]] += numbers[node] * (plus if of_molecule[k] else -minus)
    return total
