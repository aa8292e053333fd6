"""Bagged binary trees (Breiman 2001, random forests).

The nodes of a tree are stored in the order in which they are reached when left is taken first: the
left child of a node is the next one.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from models.errors import ArtifactError
from models.experts.forest import Doubles, Floats, Forest, check_columns
from models.ops.jit import kernel


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
        shares = np.clip(values[:, logits], self.clip[logits], 1 - self.clip[logits])
        values[:, logits] = np.log(shares / (1 - shares))
        return values.astype(np.float32)


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
