"""Forests: trees on fingerprints, as plain arrays."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from models.errors import ArtifactError

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class ColumnSum:
    """Outputs of C labels for one fingerprint as sums over its columns. The output is that of the
    reference, a fingerprint of zeros, plus the sum of the columns' contributions.

    Attributes:
        reference: (C,).
        contributions: (C, F), Shapley values of the game in which a set of columns has the
            numbers of the fingerprint and the others are zero. Columns that are zero have 0.
    """

    reference: Doubles
    contributions: Doubles


@dataclass(frozen=True, eq=False)
class Forest(ABC):
    """The trees of one task for L labels; a subclass per layout (`models.experts.layouts`).

    Attributes:
        starts: (L + 1,) int32; trees `starts[k]` to `starts[k + 1]` are of label k.
        scale: (L,), 1 / temperature of the trees' logit where they answer alone; 1 for a
            regression.
        both_scale: (L,), 1 / temperature of the mean with the network's logit; 1 for a regression.
    """

    dtypes: ClassVar[dict[str, Any]]
    """Types of the arrays of the forest's file."""

    starts: NDArray[np.int32]
    scale: Doubles
    both_scale: Doubles

    @property
    def num_labels(self) -> int:
        """Number of labels L."""
        return len(self.starts) - 1

    @property
    @abstractmethod
    def num_trees(self) -> int:
        """Number of trees of all labels."""

    @property
    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes that the layout's own arrays must have."""

    @abstractmethod
    def outputs(self, rows: Floats) -> Floats:
        """Evaluate the trees.

        Args:
            rows: (G, F) float32, fingerprints.

        Returns:
            (G, L) float32: logits without temperature, or values in the units of the labels.
        """

    @abstractmethod
    def column_sums(self, row: Floats, labels: Sequence[int]) -> ColumnSum:
        """Split the outputs for a fingerprint into contributions of its columns, exactly.

        The contributions are baseline Shapley values (Sundararajan and Najmi 2020), computed tree
        by tree (Lundberg et al. 2020, the independent TreeSHAP with one reference). The reference
        is the fingerprint of zeros, a molecule without atoms: it needs no training data, and a
        substructure that a molecule lacks contributes nothing.

        Args:
            row: (F,) float32, a fingerprint.
            labels: positions of C labels.
        """

    @abstractmethod
    def check_trees(self, width: int) -> None:
        """Check the values of arrays that have the right types and shapes; kernels read them
        without any check.

        Raises:
            ArtifactError: a tree asks for a column outside a fingerprint of `width` columns, or
                leads outside of its arrays.
        """

    def check(self, width: int, labels: int) -> None:
        """Check all arrays of a forest that was read. Raises ArtifactError: an array has another
        type or shape, is not finite, or is invalid (`check_trees`); the message names it."""
        per_label = dict.fromkeys(("scale", "both_scale"), (labels,))
        shapes = {**per_label, "starts": (labels + 1,), **self.shapes}
        for name, dtype in self.dtypes.items():
            array, shape = getattr(self, name), shapes[name]
            if array.dtype != dtype or array.shape != shape:
                got = f"{name}: got {array.dtype} {array.shape}"
                raise ArtifactError(f"{got}, expected {np.dtype(dtype)} {shape}")
            if not np.isfinite(array).all():
                raise ArtifactError(f"{name}: got numbers that are not finite")
        first, last = int(self.starts[0]), int(self.starts[-1])
        if (first, last) != (0, self.num_trees) or (np.diff(self.starts) < 0).any():
            got = f"starts: got {first} to {last}"
            raise ArtifactError(f"{got}, expected 0 up to {self.num_trees}, the number of trees")
        self.check_trees(width)

    def to_bytes(self) -> bytes:
        """Return the content of the forest's file, in the format of safetensors."""
        return save(
            {
                name: np.ascontiguousarray(getattr(self, name), dtype)
                for name, dtype in self.dtypes.items()
            }
        )


def check_columns(columns: NDArray[np.int16], width: int) -> None:
    """Raise ArtifactError if a question is about a column that a fingerprint does not have."""
    if columns.size and not 0 <= columns.min() <= columns.max() < width:
        got = f"columns: got {columns.min()} to {columns.max()}"
        raise ArtifactError(f"{got}, expected columns of the fingerprint, 0 to {width - 1}")
