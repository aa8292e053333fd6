"""Training of forests on fingerprints with CatBoost (Prokhorenkova et al. 2018, arXiv:1706.09516),
and their conversion to the arrays that are served (`models.experts.forest.Forest`).

CatBoost is needed for training only (`pip install g-merging[trees]`). Its symmetric trees are small
and fast to evaluate: on validation data of MoleculeNet they are no worse than random forests of
deep trees, whose files would be a hundred times larger.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from merging.config.training import ForestConfig
from models.data.fingerprint import COLUMNS, WIDTH, Block
from models.data.smiles import featurize_all
from models.errors import ConfigError, DataError, MoleculeError
from models.experts.combination import FOREST_TARGETS
from models.experts.forest import NEVER, STEPS, Forest
from models.task import Target

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Trees:
    """The trees of one label, before they are joined to a `Forest`.

    Attributes:
        columns: (T, D) int16, columns of the fingerprint.
        borders: (T, D) float32.
        leaves: (T, 2^D) float64.
        base: added to the sum of the leaves.
    """

    columns: NDArray[np.int16]
    borders: Floats
    leaves: NDArray[np.float64]
    base: float


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
    inputs: Sequence[Block],
    settings: ForestConfig,
    seed: int,
) -> Forest:
    """Fit the trees of every label on the training molecules whose label is known.

    A label with one class in the training molecules has no trees: its logit is constant, that of
    (ones + 1/2) / (known + 1).

    Args:
        rows: (G, WIDTH) fingerprints.
        labels: (G, L) float32, NaN where missing.
        train: indices of the training molecules.
        target: of the task, one of `FOREST_TARGETS`.
        inputs: blocks of columns that the trees may ask for.
        settings: of the training.
        seed: of all random numbers.

    Returns:
        The forest; `both_scale` is 1.

    Raises:
        ConfigError: the target is another one, or CatBoost is not installed.
    """
    check_forest_target(target)
    chosen = np.concatenate([np.arange(WIDTH)[COLUMNS[block]] for block in inputs])
    features = np.ascontiguousarray(rows[train.numpy()][:, chosen])
    fit = _fit_values if target == "regression" else _fit_classes
    by_label = []
    for column in tqdm(labels[train].numpy().T, desc="trees", unit="label", leave=False):
        known = ~np.isnan(column)
        by_label.append(fit(features[known], column[known], chosen, settings, seed))
    return join_trees(by_label)


def check_forest_target(target: Target) -> None:
    """Raise ConfigError if there are no forests for a target."""
    if target not in FOREST_TARGETS:
        expected = " or ".join(FOREST_TARGETS)
        raise ConfigError(f"forest: got a task of target {target!r}, expected {expected}")


def catboost() -> Any:
    """Return the package CatBoost. Raises ConfigError if it is not installed."""
    try:
        import catboost as package
    except ImportError as error:
        remedy = "expected it: pip install 'g-merging[trees]'"
        raise ConfigError(f"forest: got no package catboost, {remedy}") from error
    return package


def _fit_classes(
    features: Floats, labels: Floats, chosen: NDArray[np.int64], settings: ForestConfig, seed: int
) -> Trees:
    ones = float(labels.sum())
    if not 0 < ones < len(labels):
        return _constant(float(np.log((ones + 0.5) / (len(labels) - ones + 0.5))))
    weights = "Balanced" if settings.balanced else None
    model = catboost().CatBoostClassifier(
        **_options(settings, seed), loss_function="Logloss", auto_class_weights=weights
    )
    return trees_of(model.fit(features, labels), chosen)


def _fit_values(
    features: Floats, labels: Floats, chosen: NDArray[np.int64], settings: ForestConfig, seed: int
) -> Trees:
    mean, deviation = (float(labels.mean()), float(labels.std())) if len(labels) else (0.0, 0.0)
    if deviation == 0:
        return _constant(mean)
    model = catboost().CatBoostRegressor(**_options(settings, seed), loss_function="RMSE")
    trees = trees_of(model.fit(features, (labels - mean) / deviation), chosen)
    return replace(trees, leaves=trees.leaves * deviation, base=trees.base * deviation + mean)


def _options(settings: ForestConfig, seed: int) -> dict[str, Any]:
    return {
        "iterations": settings.iterations,
        "depth": settings.depth,
        "learning_rate": settings.learning_rate,
        "random_seed": seed,
        "thread_count": 1,
        "verbose": False,
        "allow_writing_files": False,
    }


def _constant(base: float) -> Trees:
    none = np.empty((0, 1))
    return Trees(none.astype(np.int16), none.astype(np.float32), np.empty((0, 2)), base)


def trees_of(model: Any, chosen: NDArray[np.int64]) -> Trees:
    """Convert a model of CatBoost with symmetric trees.

    Args:
        model: fitted on features whose columns are those of the fingerprint at `chosen`.
        chosen: (F',) columns of the fingerprint.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.json"
        model.save_model(str(path), format="json")
        content = json.loads(path.read_text())
    flat = [feature["flat_feature_index"] for feature in content["features_info"]["float_features"]]
    trees = content["oblivious_trees"]
    scale, (bias,) = content["scale_and_bias"]
    depth = max((len(tree["splits"] or ()) for tree in trees), default=1) or 1
    columns = np.zeros((len(trees), depth), dtype=np.int16)
    borders = np.full((len(trees), depth), NEVER, dtype=np.float32)
    leaves = np.zeros((len(trees), 2**depth))
    for k, tree in enumerate(trees):
        for level, split in enumerate(tree["splits"] or ()):
            columns[k, level] = chosen[flat[split["float_feature_index"]]]
            borders[k, level] = split["border"]
        leaves[k, : len(tree["leaf_values"])] = tree["leaf_values"]
    return Trees(columns, borders, leaves * scale, bias)


def join_trees(by_label: Sequence[Trees]) -> Forest:
    """Join the trees of all labels to a forest whose `both_scale` is 1; leaves become whole steps,
    the largest of a label `STEPS` of them."""
    depth = max(trees.columns.shape[1] for trees in by_label)
    largest = [np.abs(trees.leaves).max(initial=0.0) for trees in by_label]
    step = np.array([value / STEPS if value else 1.0 for value in largest])
    columns, borders, leaves = [], [], []
    for trees, size in zip(by_label, step, strict=True):
        missing = depth - trees.columns.shape[1]
        columns.append(np.pad(trees.columns, ((0, 0), (0, missing))))
        borders.append(np.pad(trees.borders, ((0, 0), (0, missing)), constant_values=NEVER))
        wide = ((0, 0), (0, 2**depth - trees.leaves.shape[1]))
        leaves.append(np.pad(np.rint(trees.leaves / size), wide).astype(np.int16))
    counts = [len(trees.columns) for trees in by_label]
    return Forest(
        np.concatenate(columns),
        np.concatenate(borders),
        np.concatenate(leaves),
        np.cumsum([0, *counts], dtype=np.int32),
        step,
        np.array([trees.base for trees in by_label]),
        np.ones(len(by_label)),
    )
