"""Sections and their numbers, and the fingerprint that results are kept by."""

import math

import pytest
from pydantic import ValidationError

from merging.config.base import Count, Rate, Section, Weight, fingerprint


class Numbers(Section):
    rate: Rate = 1.0
    count: Count = 1
    weight: Weight = 0.0


class Nested(Section):
    numbers: Numbers = Numbers()
    name: str = "a"


def test_a_section_is_frozen_and_closed() -> None:
    section = Numbers(rate=0.5)
    with pytest.raises(ValidationError, match="frozen"):
        section.rate = 1.0
    with pytest.raises(ValidationError, match="Extra inputs"):
        Numbers.model_validate({"rates": 0.5})
    assert section.model_dump() == {"rate": 0.5, "count": 1, "weight": 0.0}


@pytest.mark.parametrize(
    ("field", "least", "below"), [("rate", 1e-300, 0.0), ("count", 1, 0), ("weight", 0.0, -1e-9)]
)
def test_the_least_number_of_every_kind(field: str, least: float, below: float) -> None:
    assert getattr(Numbers.model_validate({field: least}), field) == least
    with pytest.raises(ValidationError, match=field):
        Numbers.model_validate({field: below})


@pytest.mark.parametrize("field", ["rate", "weight"])
@pytest.mark.parametrize(("value", "reason"), [(math.inf, "finite"), (math.nan, "greater than")])
def test_numbers_are_finite(field: str, value: float, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Numbers.model_validate({field: value})


@pytest.mark.parametrize("field", ["rate", "count", "weight"])
@pytest.mark.parametrize("value", [True, False])
def test_a_truth_value_is_no_number(field: str, value: bool) -> None:
    message = f"got {str(value).lower()}, which YAML also makes of yes and no, expected a number"
    with pytest.raises(ValidationError, match=message):
        Numbers.model_validate({field: value})


def test_fingerprints_stay_the_same() -> None:
    """Literal: with another rule nothing that was kept in a work folder would be found again."""
    assert fingerprint() == "4f53cda18c2baa0c"
    assert fingerprint("merged", 3) == "c0b242ad0efe10e1"
    assert fingerprint("merged", Nested()) == "c3bf8b2372617fd2"


def test_a_fingerprint_depends_on_every_value_and_on_their_order() -> None:
    settings = [
        ("a", "b"),
        ("b", "a"),
        ("a", "b", 0),
        ("ab",),
        (1,),
        ("1",),
        (Nested(),),
        (Nested(name="b"),),
        (Nested(numbers=Numbers(weight=0.5)),),
    ]
    assert len({fingerprint(*values) for values in settings}) == len(settings)


def test_a_default_that_is_written_out_changes_nothing() -> None:
    written = Nested.model_validate({"name": "a", "numbers": {"count": 1}})
    assert fingerprint(written) == fingerprint(Nested())
