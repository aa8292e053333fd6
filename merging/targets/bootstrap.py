"""Bootstrap over molecules: scores of many draws, and the standard error of a difference between
the scores of two models."""

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
        labels: (G, L), NaN where missing; for `multiclass` (G,) integers, -1 where missing.
        info: of the task; its target says which score (`compute_score`).
        seed: of the draws.
        draws: number of draws.

    Returns:
        The difference on all molecules, and the standard deviation over the draws.
    """
    generator, size = np.random.default_rng(seed), len(labels)
    drawn = (generator.integers(size, size=size) for _ in range(draws))
    counts = np.stack([np.bincount(rows, minlength=size) for rows in drawn])
    differences, gains = [], []
    for first, second in pairs:
        score, other = (compute_score(output, labels, info) for output in (first, second))
        differences.append(other - score)
        scores, others = (drawn_scores(output, labels, info, counts) for output in (first, second))
        gains.append(others - scores)
    return float(np.mean(differences)), float(np.nanstd(np.mean(gains, axis=0), ddof=1))


def drawn_scores(output: Array, labels: Array, info: TaskInfo, counts: Array) -> Array:
    """Compute the scores of many draws of molecules with replacement (`compute_score`).

    Args:
        output: (G, L), of the head.
        labels: as for `paired_bootstrap`.
        info: of the task.
        counts: (D, G) integers, how often each draw has a molecule.

    Returns:
        (D,), NaN for a draw without a score.
    """
    if info.target == "multiclass":
        hits = np.where(labels >= 0, output.argmax(-1) == labels, np.nan)
        return weighted_mean(hits, counts)
    of_label = area if info.target == "multilabel" else _negative_error
    by_label = np.stack(
        [of_label(values, known, counts) for values, known in zip(output.T, labels.T, strict=True)]
    )
    defined = ~np.isnan(by_label)
    return ratio(np.where(defined, by_label, 0).sum(0), defined.sum(0))


def area(output: Array, labels: Array, counts: Array) -> Array:
    """Compute the ROC-AUC of one label in every draw: the share of pairs, one molecule of either
    class, in which that of class 1 has the greater output; equal outputs count half."""
    known = np.flatnonzero(~np.isnan(labels))
    if not len(known):
        return np.full(len(counts), np.nan)
    rows = known[output[known].argsort(kind="stable")]
    ascending, is_one = output[rows], labels[rows] == 1
    groups = np.flatnonzero(np.r_[True, ascending[1:] > ascending[:-1]])  # of equal outputs
    drawn = counts[:, rows]
    ones = np.add.reduceat(drawn * is_one, groups, axis=1)
    zeros = np.add.reduceat(drawn * ~is_one, groups, axis=1)
    below = zeros.cumsum(1) - zeros
    pairs = ones.sum(1) * zeros.sum(1)
    return ratio((ones * (2 * below + zeros)).sum(1), 2 * pairs)


def _negative_error(output: Array, labels: Array, counts: Array) -> Array:
    """Compute minus the mean absolute error of one label in every draw."""
    return weighted_mean(-np.abs(output.astype(np.float64) - labels), counts)


def weighted_mean(values: Array, counts: Array) -> Array:
    """Average values (G,), NaN where missing, over the molecules of every draw."""
    known = ~np.isnan(values)
    return ratio(counts[:, known] @ values[known], counts[:, known].sum(1))


def ratio(numerator: Array, denominator: Array) -> Array:
    """Divide, element by element; NaN where the denominator is 0."""
    quotient: Array = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient
