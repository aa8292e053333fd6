"""Bands hold all molecules and measure what scikit-learn measures; conformal sets keep their word
on exchangeable data, and say where they do not."""

from itertools import pairwise

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score

from merging.targets.domain_scores import (
    CONFIDENCE,
    FEWEST,
    FEWEST_OF_CLASS,
    fit_class_sets,
    fit_intervals,
    measure_bands,
    threshold,
)

Pair = tuple[np.ndarray, np.ndarray]


def classes(count: int, share: float = 0.4, shift: float = 1.5, seed: int = 0) -> Pair:
    """Probabilities that tell the classes apart in part, and the classes."""
    random = np.random.default_rng(seed)
    known = (random.random(count) < share).astype(float)
    return 1 / (1 + np.exp(-random.normal(shift * (known - 0.5), 1))), known


def similarities(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed + 50).uniform(0.15, 0.93, count)


def test_thirds_are_measured_as_by_scikit_learn() -> None:
    near, (said, known) = similarities(600), classes(600)
    known[::7] = np.nan
    bands = measure_bands(near, said, known, None)
    there = ~np.isnan(known)
    assert [band.molecules for band in bands] == [171, 172, 171]
    assert sum(band.molecules for band in bands) == there.sum()
    assert bands[0].start <= near[there].min() < bands[0].start + 1e-4
    assert bands[-1].end >= near[there].max() > bands[-1].end - 1e-4
    for band, following in pairwise(bands):
        assert band.start < band.end == following.start < following.end
    for band in bands:
        own = there & (near >= band.start) & (near < band.end)
        assert own.sum() == band.molecules
        share = known[own].mean()
        assert band.score == pytest.approx(roc_auc_score(known[own], said[own]), rel=1e-3)
        assert band.error == pytest.approx(brier_score_loss(known[own], said[own]), rel=1e-3)
        base = brier_score_loss(known[own], np.full(own.sum(), share))
        assert band.error_of_base == pytest.approx(base, rel=1e-3)


def test_numbers_have_mean_absolute_errors() -> None:
    random, near = np.random.default_rng(1), similarities(300)
    known = random.normal(5, 2, 300)
    said = known + random.normal(0, 1, 300)
    bands = measure_bands(near, said, known, 4.0)
    assert len(bands) == 3
    for band in bands:
        own = (near >= band.start) & (near < band.end)
        error = np.abs(said - known)[own].mean()
        assert band.metric == "mae"
        assert band.score == band.error == pytest.approx(error, rel=1e-3)
        assert band.error_of_base == pytest.approx(np.abs(4.0 - known[own]).mean(), rel=1e-3)


def test_a_band_with_too_few_is_joined_with_its_smaller_neighbour() -> None:
    near = np.linspace(0.1, 0.9, 300)
    said, known = classes(300)
    known[:100] = 0  # no class 1 among the farthest
    known[100:115] = 1
    bands = measure_bands(near, said, known, None)
    assert [band.molecules for band in bands] == [200, 100]
    known[:] = 0
    known[95:105] = 1  # as few as may be, on both sides of a cut
    (band,) = measure_bands(near, said, known, None)
    assert band.molecules == 300
    known[95] = 0
    assert measure_bands(near, said, known, None) == ()


@pytest.mark.parametrize("count", [0, FEWEST - 1])
def test_too_few_molecules_have_no_band(count: int) -> None:
    said, known = np.linspace(0, 1, count), np.arange(count) % 2.0
    assert measure_bands(similarities(count), said, known, None) == ()
    assert measure_bands(similarities(count), said, known, 0.5) == ()
    nothing = np.full(80, np.nan)
    assert measure_bands(similarities(80), np.zeros(80), nothing, None) == ()


def test_equal_similarities_stay_in_one_band() -> None:
    near = np.repeat([0.2, 0.5, 1.0], [50, 10, 240])
    said, known = classes(300)
    bands = measure_bands(near, said, known, None)
    assert [(band.start, band.end, band.molecules) for band in bands] == [(0.2, 1.0, 300)]
    (same,) = measure_bands(np.full(300, 0.4), said, known, None)
    assert (same.start, same.end, same.molecules) == (0.4, 0.4, 300)
    assert FEWEST_OF_CLASS < FEWEST


def test_the_threshold_covers_exchangeable_scores() -> None:
    """Over many draws, the mean coverage is the confidence or up to 1 / (n + 1) more."""
    random, count = np.random.default_rng(2), 99
    scores = random.normal(size=(4000, count + 1))
    covered = [own[-1] <= threshold(own[:-1]) for own in scores]
    deviation = np.sqrt(0.9 * 0.1 / len(covered))
    assert CONFIDENCE - 4 * deviation < np.mean(covered)
    assert np.mean(covered) < CONFIDENCE + 1 / (count + 1) + 4 * deviation
    assert threshold(np.arange(9.0)) == 8
    assert threshold(np.arange(99.0)) == 89


def test_class_sets_cover_both_classes_of_unbalanced_labels() -> None:
    conformal = fit_class_sets(classes(2000, 0.05, seed=3), classes(20_000, 0.05, seed=4))
    assert conformal is not None
    said, known = classes(40_000, 0.05, seed=5)
    for k in (0, 1):
        own = said[known == k]
        covered = np.mean([k in conformal.classes(value) for value in own])
        assert covered == pytest.approx(conformal.coverage[k], abs=0.03)
        assert covered == pytest.approx(0.9, abs=0.05)


def test_sets_that_do_not_hold_on_the_test_molecules_say_so() -> None:
    valid = classes(1000, seed=6)
    good, bad = (fit_class_sets(valid, classes(1000, shift=shift, seed=7)) for shift in (1.5, 0))
    assert good is not None
    assert good.holds
    assert bad is not None
    assert not bad.holds
    said, known = classes(1000, seed=8)
    said[known == 0] = 0.99  # one class alone
    half = fit_class_sets(valid, (said, known))
    assert half is not None
    assert half.coverage[0] < 0.85 < half.coverage[1]
    assert not half.holds


def test_sets_need_thirty_of_each_class_in_both_subsets() -> None:
    said, known = np.tile([0.2, 0.8], 30), np.tile([0.0, 1.0], 30)
    assert fit_class_sets((said, known), (said, known)) is not None
    fewer = known.copy()
    fewer[0] = np.nan
    assert fit_class_sets((said, fewer), (said, known)) is None
    assert fit_class_sets((said, known), (said, fewer)) is None
    assert fit_intervals((said[:30], known[:30]), (said, known)) is not None
    assert fit_intervals((said[:29], known[:29]), (said, known)) is None


def test_intervals_cover_exchangeable_numbers() -> None:
    random = np.random.default_rng(9)
    known = random.normal(size=(3, 1000))
    said = known + random.laplace(size=known.shape)
    found = fit_intervals((said[0], known[0]), (said[1], known[1]))
    assert found is not None
    low, high = np.transpose([found.interval(value, "linear") for value in said[2]])
    covered = np.mean((known[2] >= low) & (known[2] <= high))
    assert covered == pytest.approx(0.9, abs=0.04)
    wide = said[1] + random.normal(0, 9, 1000)
    bad = fit_intervals((said[0], known[0]), (wide, known[1]))
    assert bad is not None
    assert not bad.holds
