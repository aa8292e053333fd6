"""Bands cover similarities in order; sets follow from thresholds."""

import pytest
from pydantic import ValidationError

from models.domain.measured import Conformal, MeasuredLabel
from tests.domains import BANDS, BROKEN, CONFORMAL


def test_every_similarity_has_the_nearest_band() -> None:
    label = MeasuredLabel(bands=BANDS)
    found = [label.band(similarity) for similarity in (0, 0.1, 0.39, 0.4, 0.41, 0.9, 1)]
    assert found == [BANDS[0]] * 3 + [BANDS[1]] * 4
    assert MeasuredLabel().band(0.5) is None


@pytest.mark.parametrize(
    "bands",
    [
        BANDS[::-1],
        (BANDS[0], BANDS[0]),
        (BANDS[0], BANDS[1].model_copy(update={"start": 0.5})),
        (BANDS[0].model_copy(update={"start": 0.5}), BANDS[1]),
    ],
)
def test_bands_with_gaps_or_out_of_order_are_refused(bands: tuple[object, ...]) -> None:
    with pytest.raises(ValidationError, match="expected neighbouring ones, in order"):
        MeasuredLabel(bands=bands)


@pytest.mark.parametrize(
    ("probability", "expected"),
    [(0.0, [0]), (0.29, [0]), (0.3, [0, 1]), (0.6, [0, 1]), (0.61, [1]), (1.0, [1])],
)
def test_a_class_is_in_the_set_up_to_its_threshold(probability: float, expected: list[int]) -> None:
    assert CONFORMAL.classes(probability) == expected


def test_sets_hold_from_a_coverage_of_every_class() -> None:
    assert CONFORMAL.holds
    assert not BROKEN.holds
    assert Conformal(thresholds=(0.5,), coverage=(0.85,)).holds


def test_a_set_may_be_empty() -> None:
    strict = Conformal(thresholds=(0.3, 0.3), coverage=(0.9, 0.9))
    assert strict.classes(0.5) == []


def test_intervals_are_in_the_unit_of_the_number() -> None:
    conformal = Conformal(thresholds=(0.5,), coverage=(0.9,))
    assert conformal.interval(2, "linear") == [1.5, 2.5]
    assert conformal.interval(10, "log10") == pytest.approx([10**0.5, 10**1.5])


def test_coverage_has_a_number_for_every_threshold() -> None:
    with pytest.raises(ValidationError, match="coverage: got 1 for 2 thresholds"):
        Conformal(thresholds=(0.5, 0.5), coverage=(0.9,))
