"""Forests: boosted trees on fingerprints, as plain arrays, and the kernels that evaluate them.

Trees are symmetric (Prokhorenkova et al. 2018, CatBoost): all nodes of a level ask the same
question, "is column f greater than border b?", so that a tree of depth D is D questions and a table
of 2^D leaves, whose index has the answers as its bits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from models.errors import ArtifactError
from models.ops.jit import kernel

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
NEVER = float(np.finfo(np.float32).max)
"""The border of a question whose answer is always no; it fills up trees of a smaller depth."""
STEPS = 32767
"""Leaves are stored as whole numbers from -STEPS to STEPS."""
MAX_DEPTH = 10
_MAX_TREES = 65_536  # of a label: the sum of their leaves fits 32 bits
_BLOCK = 64  # molecules
_FEW = 4  # molecules; fewer are evaluated one by one
_DTYPES: dict[str, Any] = {
    "columns": np.int16,
    "borders": np.float32,
    "leaves": np.int16,
    "starts": np.int32,
    "step": np.float64,
    "base": np.float64,
    "both_scale": np.float64,
}
"""The arrays of a forest's file."""


@dataclass(frozen=True, eq=False)
class Forest:
    """The trees of one task: T trees of depth D for L labels.

    Attributes:
        columns: (T, D) int16, column of the fingerprint that a level asks for.
        borders: (T, D) float32; the answer is yes above the border.
        leaves: (T, 2^D) int16, in steps; indexed by the answers' bits, the first level lowest. Half
            a step is about 5e-6 of a logit, so that a sum over 500 trees is off by about 1e-4.
        starts: (L + 1,) int32; trees `starts[k]` to `starts[k + 1]` are of label k.
        step: (L,), the size of a label's step.
        base: (L,), added to the sum of a label's leaves.
        both_scale: (L,), 1 / temperature of the mean with the network's logit; 1 for a regression.
    """

    columns: NDArray[np.int16]
    borders: Floats
    leaves: NDArray[np.int16]
    starts: NDArray[np.int32]
    step: Doubles
    base: Doubles
    both_scale: Doubles

    @property
    def num_labels(self) -> int:
        """Number of labels L."""
        return len(self.base)

    def outputs(self, rows: Floats) -> Floats:
        """Evaluate the trees.

        Args:
            rows: (G, F) float32, fingerprints.

        Returns:
            (G, L) float32: logits, or values in the units of the labels.
        """
        sums = np.empty((self.num_labels, len(rows)), dtype=np.int32)
        trees = self.columns, self.borders, self.leaves, self.starts
        if len(rows) < _FEW:
            for k, row in enumerate(rows):
                sum_trees_of_one(row, *trees, sums[:, k])
        else:
            for begin in range(0, len(rows), _BLOCK):
                block = np.ascontiguousarray(rows[begin : begin + _BLOCK].T)
                sum_trees(block, *trees, sums[:, begin : begin + _BLOCK])
        return (sums.T * self.step + self.base).astype(np.float32)

    def to_bytes(self) -> bytes:
        """Return the content of the forest's file, in the format of safetensors."""
        arrays = {name: getattr(self, name) for name in _DTYPES}
        return save({name: np.ascontiguousarray(arrays[name], _DTYPES[name]) for name in arrays})

    @classmethod
    def from_bytes(cls, data: bytes, width: int, labels: int) -> "Forest":
        """Read the content of a forest's file.

        Args:
            data: from `to_bytes`.
            width: number of columns of a fingerprint.
            labels: number of labels of the task.

        Raises:
            ArtifactError: an array is missing, unexpected, of another type or shape or not finite,
                or a tree asks for a column that does not exist. The message names the array.
        """
        try:
            arrays = load(data)
        except SafetensorError as error:
            raise ArtifactError(str(error)) from error
        _check(arrays, width, labels)
        return cls(**arrays)


def _check(arrays: Mapping[str, NDArray[Any]], width: int, labels: int) -> None:
    """Raise ArtifactError: see `Forest.from_bytes`. The kernels read without any check."""
    if arrays.keys() != _DTYPES.keys():
        raise ArtifactError(f"got arrays {sorted(arrays)}, expected {sorted(_DTYPES)}")
    columns, starts = arrays["columns"], arrays["starts"]
    trees, depth = columns.shape if columns.ndim == 2 else (0, 0)
    if not trees or not 0 < depth <= MAX_DEPTH:
        expected = f"expected (trees, depth), at least one tree of depth 1 to {MAX_DEPTH}"
        raise ArtifactError(f"columns: got shape {columns.shape}, {expected}")
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("columns", "borders"), (trees, depth))
    shapes |= {"leaves": (trees, 2**depth), "starts": (labels + 1,)}
    shapes |= dict.fromkeys(("step", "base", "both_scale"), (labels,))
    for name, array in arrays.items():
        if array.dtype != _DTYPES[name] or array.shape != shapes[name]:
            got = f"{name}: got {array.dtype} {array.shape}"
            raise ArtifactError(f"{got}, expected {np.dtype(_DTYPES[name])} {shapes[name]}")
        if not np.isfinite(array).all():
            raise ArtifactError(f"{name}: got numbers that are not finite, expected finite ones")
    if columns.min() < 0 or columns.max() >= width:
        got = f"columns: got {columns.min()} to {columns.max()}"
        raise ArtifactError(f"{got}, expected columns of the fingerprint, 0 to {width - 1}")
    counts = np.diff(starts)
    if starts[0] != 0 or starts[-1] != trees or not 0 <= counts.min() <= counts.max() < _MAX_TREES:
        raise ArtifactError(f"starts: got {starts[0]} to {starts[-1]}, expected 0 up to {trees}")


@kernel
def sum_trees(
    rows: Floats,
    columns: NDArray[np.int16],
    borders: Floats,
    leaves: NDArray[np.int16],
    starts: NDArray[np.int32],
    sums: NDArray[np.int32],
) -> None:
    """Sum the leaves of some molecules, in steps: see `Forest`.

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
def sum_trees_of_one(
    row: Floats,
    columns: NDArray[np.int16],
    borders: Floats,
    leaves: NDArray[np.int16],
    starts: NDArray[np.int32],
    sums: NDArray[np.int32],
) -> None:
    """Sum the leaves of one molecule, as `sum_trees` does: row (F,) -> sums (L,)."""
    depth = columns.shape[1]
    for label in range(len(starts) - 1):
        total = 0
        for tree in range(starts[label], starts[label + 1]):
            leaf = np.int64(0)
            for level in range(depth):
                leaf |= np.int64(row[columns[tree, level]] > borders[tree, level]) << level
            total += leaves[tree, leaf]
        sums[label] = total
