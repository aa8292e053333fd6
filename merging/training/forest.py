"""Training of forests on fingerprints: fingerprints of a data set, a forest per task."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from merging.config.training import ForestConfig, ForestKind
from merging.targets.probe import constant_output
from merging.training.bagging import bagged_library, constant_bagged, fit_bagged, join_bagged
from merging.training.boosting import boosted_library, constant_boosted, fit_boosted, join_boosted
from models.data.fingerprint import COLUMNS, WIDTH, Block
from models.data.smiles import featurize_all
from models.errors import ConfigError, DataError, MoleculeError
from models.experts.combination import FOREST_TARGETS
from models.experts.forest import Forest
from models.task import Target

Floats = NDArray[np.float32]
_GROUP = 1024  # molecules


@dataclass(frozen=True)
class Kind:
    """A kind of trees.

    Attributes:
        library: returns name and version of the library that trains them.
        fit: fits the trees of a label.
        constant: returns the trees of a label whose output is constant.
        join: joins the trees of all labels.
    """

    library: Callable[[], str]
    fit: Callable[..., Any]
    constant: Callable[[float], Any]
    join: Callable[[Sequence[Any], Target], Forest]


KINDS: dict[ForestKind, Kind] = {
    "boosted": Kind(
        boosted_library, fit_boosted, constant_boosted, lambda by_label, _: join_boosted(by_label)
    ),
    "bagged": Kind(bagged_library, fit_bagged, constant_bagged, join_bagged),
}


def check_forest_target(target: Target) -> None:
    """Raise ConfigError if there are no forests for a target."""
    if target not in FOREST_TARGETS:
        expected = " or ".join(FOREST_TARGETS)
        raise ConfigError(f"forest: got a task of target {target!r}, expected {expected}")


def fingerprint_rows(smiles: Sequence[str], task: str) -> Floats:
    """Compute the fingerprints of a data set's molecules, read as data sets are (`strict` False).

    Returns:
        (G, WIDTH) float32.

    Raises:
        DataError: a molecule cannot be read.
    """
    rows = []
    for begin in tqdm(range(0, len(smiles), 1024), desc=f"{task}: fingerprints"):
        for molecule in featurize_all(
            smiles[begin : begin + 1024], strict=False, fingerprints=True
        ):
            if isinstance(molecule, MoleculeError):
                raise DataError(f"{task}: {molecule}")
            rows.append(molecule.graph.fingerprint.numpy())  # type: ignore[attr-defined]
    return np.stack(rows)


def fit_forest(
    rows: Floats,
    labels: Tensor,
    train: Tensor,
    target: Target,
    kind: ForestKind,
    inputs: Sequence[Block],
    settings: ForestConfig,
    seed: int,
) -> Forest:
    """Fit the trees of every label on the training molecules whose label is known.

    A label with one value only in the training molecules has no trees. Its output is constant: the
    logit of (ones + 1/2) / (known + 1), or the value.

    Args:
        rows: (G, WIDTH) fingerprints.
        labels: (G, L) float32, NaN where missing.
        train: indices of the training molecules.
        target: of the task, one of `FOREST_TARGETS`.
        kind: of the trees.
        inputs: blocks of columns that the trees may ask for.
        settings: of the training.
        seed: of all random numbers.

    Returns:
        The forest; its temperatures are 1.

    Raises:
        ConfigError: there are no forests for the target, or the library is not installed.
    """
    check_forest_target(target)
    chosen = np.concatenate([np.arange(WIDTH)[COLUMNS[block]] for block in inputs])
    features = np.ascontiguousarray(rows[train.numpy()][:, chosen])
    by_label = []
    for column in tqdm(labels[train].numpy().T, desc=f"{kind} trees", unit="label", leave=False):
        known = ~np.isnan(column)
        if len(np.unique(column[known])) < 2:
            by_label.append(KINDS[kind].constant(constant_output(column[known], target)))
            continue
        data = features[known], column[known], chosen, target
        by_label.append(KINDS[kind].fit(*data, getattr(settings, kind), seed))
    return KINDS[kind].join(by_label, target)
