"""How wrong the answers for a label are by similarity to the training molecules, and thresholds of
conformal sets."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from models.domain.measured import Band, Conformal

Array = NDArray[Any]
CONFIDENCE = 0.9
"""Share of cases in which a conformal set should hold the truth."""
FEWEST = 30
"""Fewest molecules of a band; for conformal sets the fewest of the validation and of the test
molecules, of every class."""
FEWEST_OF_CLASS = 10
"""Fewest molecules of either class in a band, for an area under a curve."""
_BANDS = 3
_DIGITS = 4


def measure_bands(
    similarities: Array, predictions: Array, known: Array, median: float | None
) -> tuple[Band, ...]:
    """Measure the errors of a label by similarity, on molecules that the model has not learnt from.

    The bands are thirds of the molecules by similarity. A band with fewer than 30 molecules, or of
    a class label fewer than 10 of a class, is joined with its smaller neighbour.

    Args:
        similarities: (n,) to the nearest training molecule.
        predictions: (n,) probabilities, or numbers.
        known: (n,) labels, NaN where missing.
        median: of the training molecules; None for a class label.

    Returns:
        Bands by rising similarity; none if all molecules together are too few.
    """
    there = ~np.isnan(known)
    similarities, predictions, known = similarities[there], predictions[there], known[there]
    if not _suffices(known, median is None):
        return ()
    first, last = _outer(similarities.min(), math.floor), _outer(similarities.max(), math.ceil)
    thirds = np.quantile(similarities, np.arange(1, _BANDS) / _BANDS).round(_DIGITS)
    cuts = [float(cut) for cut in np.unique(thirds) if first < cut < last]
    while True:
        group = np.digitize(similarities, cuts)
        groups = [group == k for k in range(len(cuts) + 1)]
        small = [k for k, own in enumerate(groups) if not _suffices(known[own], median is None)]
        if not small:
            break
        sides = [k for k in (small[0] - 1, small[0]) if 0 <= k < len(cuts)]
        del cuts[min(sides, key=lambda k: groups[k].sum() + groups[k + 1].sum())]
    edges = [first, *cuts, last]
    return tuple(
        _band(edges[k], edges[k + 1], predictions[own], known[own], median)
        for k, own in enumerate(groups)
    )


def _outer(similarity: float, rounded: Callable[[float], int]) -> float:
    """Round an end of all bands so that the molecules stay inside."""
    digits: float = 10**_DIGITS
    return rounded(similarity * digits) / digits


def _suffices(known: Array, of_classes: bool) -> bool:
    """Return whether there are enough molecules for a band."""
    classes = len(known) - known.sum(), known.sum()
    return len(known) >= FEWEST and (not of_classes or min(classes) >= FEWEST_OF_CLASS)


def _band(start: float, end: float, predictions: Array, known: Array, median: float | None) -> Band:
    common = {"start": start, "end": end, "molecules": len(known)}
    if median is None:
        share = known.mean()
        numbers = {
            "score": roc_auc_score(known, predictions),
            "error": np.square(predictions - known).mean(),
            "error_of_base": share * (1 - share),
        }
        return Band(**common, metric="roc_auc", **_rounded(numbers))
    error = np.abs(predictions - known).mean()
    numbers = {"score": error, "error": error, "error_of_base": np.abs(median - known).mean()}
    return Band(**common, metric="mae", **_rounded(numbers))


def _rounded(numbers: dict[str, Any]) -> dict[str, float]:
    """Round to four significant digits."""
    return {name: float(f"{number:.{_DIGITS}g}") for name, number in numbers.items()}


def fit_class_sets(valid: tuple[Array, Array], test: tuple[Array, Array]) -> Conformal | None:
    """Fit the thresholds of a class label's conformal sets, by class (Mondrian), and judge them.

    Args:
        valid, test: probabilities of 1 (n,) and labels (n,), NaN where missing, of the validation
            molecules, which the model has not learnt from, and of the test molecules.

    Returns:
        The thresholds, with the share of the test molecules of a class whose truth was in the set;
        None if there are fewer than 30 molecules of a class in either subset.
    """
    scores = [
        [np.abs(known[known == k] - probabilities[known == k]) for k in (0, 1)]
        for probabilities, known in (valid, test)
    ]
    return _fitted(*scores)


def fit_intervals(valid: tuple[Array, Array], test: tuple[Array, Array]) -> Conformal | None:
    """Fit the half-width of a number's conformal intervals, and judge them.

    Args:
        valid, test: as for `fit_class_sets`, answers and labels; of a scale `log10` their
            logarithms.

    Returns:
        The half-width, with the share of the test molecules whose truth was in the interval; None
        if there are fewer than 30 molecules in either subset.
    """
    scores = [[np.abs(said - known)[~np.isnan(known)]] for said, known in (valid, test)]
    return _fitted(*scores)


def _fitted(valid: list[Array], test: list[Array]) -> Conformal | None:
    if min(len(scores) for scores in (*valid, *test)) < FEWEST:
        return None
    thresholds = [threshold(scores) for scores in valid]
    coverage = [
        float((scores <= most).mean()) for scores, most in zip(test, thresholds, strict=True)
    ]
    return Conformal(
        thresholds=tuple(thresholds), coverage=tuple(round(share, _DIGITS) for share in coverage)
    )


def threshold(scores: Array) -> float:
    """Return the score below which that of a further molecule lies with `CONFIDENCE` or more, if
    all are exchangeable: the ceil((n + 1) 0.9)-th smallest of n scores (Vovk et al. 2005).

    Args:
        scores: (n,), n at least 9.
    """
    place = math.ceil((len(scores) + 1) * CONFIDENCE)
    return float(np.sort(scores)[place - 1])
