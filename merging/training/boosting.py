"""Boosted symmetric trees on fingerprints with CatBoost (Prokhorenkova et al. 2018,
arXiv:1706.09516), and their conversion to the arrays that are served.

CatBoost is needed for training only (`pip install g-merging[trees]`).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merging.config.training import BoostedConfig
from models.errors import ConfigError
from models.experts.symmetric_trees import NEVER, STEPS, SymmetricForest
from models.task import Target

Floats = NDArray[np.float32]
Columns = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SymmetricTrees:
    """The trees of one label, before they are joined to a forest.

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


def fit_boosted(
    features: Floats,
    labels: Floats,
    chosen: Columns,
    target: Target,
    settings: BoostedConfig,
    seed: int,
) -> SymmetricTrees:
    """Fit the trees of one label.

    Args:
        features: (n, F'), the columns `chosen` of the fingerprints of the training molecules.
        labels: (n,), known: 0 and 1, both of them, or different values.
        chosen: (F',) columns of the fingerprint.
        target: `multilabel` (log loss) or `regression` (squared error).
        settings: of the trees.
        seed: of all random numbers.

    Raises:
        ConfigError: CatBoost is not installed.
    """
    options = {
        "iterations": settings.trees,
        "depth": settings.depth,
        "learning_rate": settings.learning_rate,
        "random_seed": seed,
        "thread_count": 1,
        "verbose": False,
        "allow_writing_files": False,
    }
    if target == "regression":
        mean, deviation = float(labels.mean()), float(labels.std())
        model = _catboost().CatBoostRegressor(**options, loss_function="RMSE")
        trees = symmetric_trees(model.fit(features, (labels - mean) / deviation), chosen)
        return replace(trees, leaves=trees.leaves * deviation, base=trees.base * deviation + mean)
    weights = "Balanced" if settings.balanced else None
    model = _catboost().CatBoostClassifier(
        **options, loss_function="Logloss", auto_class_weights=weights
    )
    return symmetric_trees(model.fit(features, labels), chosen)


def boosted_library() -> str:
    """Return the name and version of the library. Raises ConfigError if it is not installed."""
    return f"catboost {_catboost().__version__}"


def _catboost() -> Any:
    try:
        import catboost as package
    except ImportError as error:
        remedy = "expected it (pip install 'g-merging[trees]'), or kinds: [bagged]"
        raise ConfigError(f"forest: got no package catboost, {remedy}") from error
    return package


def symmetric_trees(model: Any, chosen: Columns) -> SymmetricTrees:
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
    return SymmetricTrees(columns, borders, leaves * scale, bias)


def constant_boosted(base: float) -> SymmetricTrees:
    """Return no trees, for a label whose output is constant."""
    none = np.empty((0, 1))
    return SymmetricTrees(none.astype(np.int16), none.astype(np.float32), np.empty((0, 2)), base)


def join_boosted(by_label: Sequence[SymmetricTrees]) -> SymmetricForest:
    """Join the trees of all labels to a forest whose temperatures are 1; leaves become whole steps,
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
    ones = np.ones(len(by_label))
    return SymmetricForest(
        starts=np.cumsum([0, *counts], dtype=np.int32),
        scale=ones,
        both_scale=ones.copy(),
        columns=np.concatenate(columns),
        borders=np.concatenate(borders),
        leaves=np.concatenate(leaves),
        step=step,
        base=np.array([trees.base for trees in by_label], dtype=np.float64),
    )
