"""Bagged trees on fingerprints with scikit-learn (Breiman 2001, random forests), and their
conversion to the arrays that are served."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

from merging.config.training import BaggedConfig
from models.errors import TrainingError
from models.experts.binary_trees import BinaryForest
from models.task import Target

Floats = NDArray[np.float32]
Columns = NDArray[np.int64]
CLIP = 1e-3
"""Probabilities are clipped to CLIP ... 1 - CLIP before their logit is taken."""


@dataclass(frozen=True, eq=False)
class BinaryTrees:
    """The trees of one label, before they are joined to a forest: (N,) arrays as of
    `BinaryForest`.

    Attributes:
        columns, numbers, right: of the nodes.
        sizes: (T,), nodes of a tree.
        base: output of a label without trees.
    """

    columns: NDArray[np.int16]
    numbers: Floats
    right: NDArray[np.uint16]
    sizes: NDArray[np.int64]
    base: float = 0.0


def fit_bagged(
    features: Floats,
    labels: Floats,
    chosen: Columns,
    target: Target,
    settings: BaggedConfig,
    seed: int,
) -> BinaryTrees:
    """Fit the trees of one label; arguments as of `merging.training.boosting.fit_boosted`.

    Raises:
        TrainingError: a tree has too many nodes for the arrays.
    """
    options: dict[str, Any] = {
        "n_estimators": settings.trees,
        "min_samples_leaf": settings.min_leaf,
        "random_state": seed,
    }
    if target == "regression":
        model = RandomForestRegressor(**options, max_features=1 / 3)
    else:
        model = RandomForestClassifier(**options, class_weight="balanced")
    model.fit(features, labels)
    return binary_trees([estimator.tree_ for estimator in model.estimators_], chosen)


def bagged_library() -> str:
    """Return the name and version of the library."""
    return f"scikit-learn {version('scikit-learn')}"


def binary_trees(trees: Sequence[Any], chosen: Columns) -> BinaryTrees:
    """Convert trees of scikit-learn, whose nodes are stored left first, too.

    Args:
        trees: `tree_` of the fitted estimators; values are those of class 1 where there are two.
        chosen: (F',) columns of the fingerprint.

    Raises:
        TrainingError: a tree has too many nodes for the arrays.
    """
    columns, numbers, right = [], [], []
    for tree in trees:
        inner = tree.children_left >= 0
        nodes = np.arange(tree.node_count)
        if not (tree.children_left[inner] == nodes[inner] + 1).all():
            raise TrainingError("got trees in another order of nodes, expected the left child next")
        distance = np.where(inner, tree.children_right - nodes, 0)
        if distance.max(initial=0) > np.iinfo(np.uint16).max:
            got = f"got a tree of {tree.node_count} nodes"
            raise TrainingError(f"{got}, expected fewer: increase `bagged.min_leaf`")
        columns.append(np.where(inner, chosen[np.where(inner, tree.feature, 0)], 0))
        leaf = tree.value[:, 0, -1] / (tree.value[:, 0].sum(1) if tree.value.shape[2] > 1 else 1)
        numbers.append(np.where(inner, _rounded_down(tree.threshold), leaf.astype(np.float32)))
        right.append(distance)
    return BinaryTrees(
        np.concatenate(columns).astype(np.int16),
        np.concatenate(numbers).astype(np.float32),
        np.concatenate(right).astype(np.uint16),
        np.array([len(tree_columns) for tree_columns in columns]),
    )


def _rounded_down(borders: NDArray[np.float64]) -> Floats:
    """Return the greatest float32 up to each border, so that float32 features are above one if and
    only if they are above the other."""
    near = borders.astype(np.float32)
    return np.where(near > borders, np.nextafter(near, np.float32(-np.inf)), near)


def constant_bagged(base: float) -> BinaryTrees:
    """Return no trees, for a label whose output is constant."""
    none = np.empty(0)
    arrays = none.astype(np.int16), none.astype(np.float32), none.astype(np.uint16)
    return BinaryTrees(*arrays, none.astype(np.int64), base)


def join_bagged(by_label: Sequence[BinaryTrees], target: Target) -> BinaryForest:
    """Join the trees of all labels to a forest whose temperatures are 1."""
    sizes = np.concatenate([trees.sizes for trees in by_label])
    ones = np.ones(len(by_label))
    return BinaryForest(
        starts=np.cumsum([0, *(len(trees.sizes) for trees in by_label)], dtype=np.int32),
        scale=ones,
        both_scale=ones.copy(),
        columns=np.concatenate([trees.columns for trees in by_label]),
        numbers=np.concatenate([trees.numbers for trees in by_label]),
        right=np.concatenate([trees.right for trees in by_label]),
        roots=(np.cumsum(sizes) - sizes).astype(np.int32),
        base=np.array([trees.base for trees in by_label], dtype=np.float64),
        clip=ones * (0.0 if target == "regression" else CLIP),
    )
