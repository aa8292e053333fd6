"""Random forests for tests, and the loops over their nodes that kernels must agree with."""

from itertools import product
from math import factorial

import numpy as np
from numpy.typing import NDArray

from models.data.fingerprint import WIDTH
from models.experts.binary_trees import BinaryForest
from models.experts.forest import Forest
from models.experts.symmetric_trees import SymmetricForest


def random_rows(count: int, width: int = WIDTH, seed: int = 0) -> NDArray[np.float32]:
    """Counts from 0 to 3, as of fingerprints."""
    return np.random.default_rng(seed).integers(0, 4, (count, width)).astype(np.float32)


def random_symmetric(labels: int = 1, width: int = WIDTH, seed: int = 0) -> SymmetricForest:
    """Three trees of depth 2 for every label but the last of several, which has none."""
    random = np.random.default_rng(seed)
    counts = [3] * labels if labels == 1 else [3] * (labels - 1) + [0]
    trees = sum(counts)
    return SymmetricForest(
        starts=np.cumsum([0, *counts], dtype=np.int32),
        scale=np.linspace(0.5, 1, labels),
        both_scale=np.linspace(1, 2, labels),
        columns=random.integers(0, width, (trees, 2)).astype(np.int16),
        borders=random.choice([0.5, 1.5, 2.5], (trees, 2)).astype(np.float32),
        leaves=random.integers(-30000, 30000, (trees, 4)).astype(np.int16),
        step=np.full(labels, 5e-5),
        base=np.linspace(-0.25, 0.25, labels),
    )


def binary_forest(labels: int = 1, clip: float = 1e-3) -> BinaryForest:
    """Two trees for every label but the last of several, which has none: column 3 above 1.5, then
    column 0 above 0.5; and a single leaf."""
    counts = [2] * labels if labels == 1 else [2] * (labels - 1) + [0]
    pairs = sum(counts) // 2
    return BinaryForest(
        starts=np.cumsum([0, *counts], dtype=np.int32),
        scale=np.linspace(0.5, 1, labels),
        both_scale=np.linspace(1, 2, labels),
        columns=np.array([3, 0, 0, 0, 0, 0] * pairs, dtype=np.int16),
        numbers=np.array([1.5, 0.5, 0.1, 0.6, 0.9, 0.5] * pairs, dtype=np.float32),
        right=np.array([4, 2, 0, 0, 0, 0] * pairs, dtype=np.uint16),
        roots=np.array([start + 6 * k for k in range(pairs) for start in (0, 5)], dtype=np.int32),
        base=np.linspace(0.3, 0.7, labels),
        clip=np.full(labels, clip),
    )


def brute_force_shapley(forest: Forest, row: NDArray[np.float32]) -> NDArray[np.float64]:
    """Shapley values of the columns of one fingerprint against zeros, by their definition: (labels,
    F). Takes 2^n evaluations for n columns that are not zero."""
    players = row.nonzero()[0]
    count = len(players)
    sets = np.array([*product((0, 1), repeat=count)], dtype=np.float32)
    rows = np.zeros((len(sets), len(row)), dtype=np.float32)
    rows[:, players] = sets * row[players]
    outputs = forest.outputs(rows).astype(np.float64)
    found = np.zeros((forest.num_labels, len(row)))
    for k, column in enumerate(players):
        without = np.flatnonzero(sets[:, k] == 0)
        sizes = sets[without].sum(1).astype(int)
        weights = [factorial(s) * factorial(count - s - 1) / factorial(count) for s in sizes]
        gains = outputs[without + 2 ** (count - 1 - k)] - outputs[without]
        found[:, column] = np.array(weights) @ gains
    return found


def random_binary(width: int, labels: int = 2, seed: int = 0) -> BinaryForest:
    """Random trees of several questions, some of them about the same columns."""
    random = np.random.default_rng(seed)
    columns: list[int] = []
    numbers: list[float] = []
    right: list[int] = []

    def grow(depth: int) -> None:
        node = len(columns)
        leaf = depth == 0 or random.random() < 0.15
        columns.append(0 if leaf else int(random.integers(width)))
        numbers.append(random.random() if leaf else random.choice([-0.5, 0.5, 1.5]))
        right.append(0)
        if not leaf:
            grow(depth - 1)
            right[node] = len(columns) - node
            grow(depth - 1)

    roots = []
    for _ in range(4 * labels):
        roots.append(len(columns))
        grow(5)
    return BinaryForest(
        starts=np.arange(0, 4 * labels + 1, 4, dtype=np.int32),
        scale=np.ones(labels),
        both_scale=np.ones(labels),
        columns=np.array(columns, dtype=np.int16),
        numbers=np.array(numbers, dtype=np.float32),
        right=np.array(right, dtype=np.uint16),
        roots=np.array(roots, dtype=np.int32),
        base=np.zeros(labels),
        clip=np.zeros(labels),
    )
