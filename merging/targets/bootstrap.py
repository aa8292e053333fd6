"""Paired bootstrap: the standard error of a difference between the scores of two models."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merging.targets.metrics import compute_score
from models.task import TaskInfo

Array = NDArray[Any]
DRAWS = 200


def paired_bootstrap(
    pairs: Sequence[tuple[Array, Array]],
    labels: Array,
    info: TaskInfo,
    seed: int = 0,
    draws: int = DRAWS,
) -> tuple[float, float]:
    """Compute the mean over pairs of `score(second) - score(first)`, and its standard error.

    Molecules are drawn with replacement, the same for both outputs of a pair and for all pairs
    (Efron and Tibshirani 1993, chapter 6). Draws without a score (a label with one class only, if
    there is no other) are left out.

    Args:
        pairs: outputs of two models, both (G, L), such as those of several seeds.
        labels: (G, L), NaN where missing.
        info: of the task; its target says which score (`compute_score`).
        seed: of the draws.
        draws: number of draws.

    Returns:
        The difference on all molecules, and the standard deviation over the draws.
    """
    generator = np.random.default_rng(seed)

    def difference(rows: Array | slice) -> float:
        known = labels[rows]
        gains = [
            compute_score(second[rows], known, info) - compute_score(first[rows], known, info)
            for first, second in pairs
        ]
        return float(np.mean(gains))

    drawn = [difference(generator.integers(len(labels), size=len(labels))) for _ in range(draws)]
    return difference(slice(None)), float(np.nanstd(drawn, ddof=1))
