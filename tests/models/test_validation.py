"""Messages on wrong files, in the words of their authors."""

from datetime import date
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.validation import one_of, problems_of, sections_at


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Fast(Section):
    kind: Literal["fast"]
    speed: int


class Slow(Section):
    kind: Literal["slow"]
    patience: float = 1.0


class Whole(Section):
    name: str
    rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    engine: Annotated[Fast | Slow, Field(discriminator="kind")]
    tasks: dict[str, Fast] = {}
    layers: list[int] | None = None


GOOD: dict[str, Any] = {"name": "a", "engine": {"kind": "fast", "speed": 1}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": None}, "name: got nothing, expected text"),
        ({"name": 3}, "name: got 3 without quotes, expected text"),
        ({"name": date(2024, 1, 2)}, "name: got 2024-01-02 without quotes, expected text"),
        ({"rate": 0.0}, "rate: got 0.0, expected greater than 0"),
        ({"rate": 2.0}, "rate: got 2.0, expected less than or equal to 1"),
        (
            {"nmae": 1},
            "nmae: got an unknown key, expected one of name, rate, engine, tasks, layers",
        ),
        (
            {"engine": {"kind": "fast", "speed": 1, "sped": 1}},
            "engine.fast.sped: got an unknown key, expected one of kind, speed, did you mean",
        ),
        ({"engine": {"kind": "fast"}}, "engine.fast.speed: got nothing, expected it to be given"),
        ({"tasks": {"x": 3}}, "tasks.x: got 3, expected a section of keys"),
        ({"tasks": [1]}, "tasks: got [1], expected a section of keys"),
        ({"layers": "ab" * 60}, f"layers: got 'abab{'ab' * 27}a..., expected a list"),
    ],
)
def test_problems_are_told_with_their_location(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        Whole.model_validate(GOOD | changes)
    text = problems_of(error.value, Whole)
    assert text.startswith(message), text


def test_all_problems_are_told_in_one_line() -> None:
    with pytest.raises(ValidationError) as error:
        Whole.model_validate({"rate": 3.0, "engine": {"kind": "slow"}})
    assert problems_of(error.value, Whole) == (
        "name: got nothing, expected it to be given;"
        " rate: got 3.0, expected less than or equal to 1"
    )


def test_what_is_no_section_at_all() -> None:
    with pytest.raises(ValidationError) as error:
        Whole.model_validate(3)
    assert problems_of(error.value, Whole, whole="manifest").startswith("manifest: got 3, expected")


def test_sections_follow_fields_tags_and_keys() -> None:
    assert sections_at(Whole, []) == [Whole]
    assert sections_at(Whole, ["engine"]) == [Fast, Slow]
    assert sections_at(Whole, ["engine", "slow"]) == [Slow]
    assert sections_at(Whole, ["tasks", "any"]) == [Fast]
    assert sections_at(Whole, ["name"]) == []


def test_one_of_lists_the_known_and_the_nearest() -> None:
    assert one_of("speeed", ["kind", "speed"]) == "one of kind, speed, did you mean 'speed'?"
    assert one_of("x", ["kind"]) == "one of kind"
