"""All layouts of forests, and the function that reads any of them."""

from safetensors import SafetensorError
from safetensors.numpy import load

from models.errors import ArtifactError
from models.experts.binary_trees import BinaryForest
from models.experts.forest import Arrays, Forest
from models.experts.symmetric_trees import SymmetricForest

LAYOUTS: tuple[type[Forest], ...] = (SymmetricForest, BinaryForest)


def read_forest(data: bytes, width: int, labels: int) -> Forest:
    """Read the content of a forest's file (`Forest.to_bytes`).

    Args:
        data: of the file.
        width: number of columns of a fingerprint.
        labels: number of labels of the task.

    Raises:
        ArtifactError: the arrays are those of no layout, or invalid (`Forest.check`).
    """
    try:
        arrays = load(data)
    except SafetensorError as error:
        raise ArtifactError(str(error)) from error
    forest = make_forest(arrays)
    forest.check(width, labels)
    return forest


def make_forest(arrays: Arrays) -> Forest:
    """Return the forest of some arrays, whose names select the layout; they are not checked. Raises
    ArtifactError: the arrays are those of no layout."""
    for layout in LAYOUTS:
        if arrays.keys() == layout.dtypes.keys():
            return layout(**arrays)
    expected = " or ".join(", ".join(layout.dtypes) for layout in LAYOUTS)
    raise ArtifactError(f"got arrays {', '.join(sorted(arrays))}, expected {expected}")
