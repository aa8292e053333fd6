"""Messages for pydantic's validation errors; for an unknown key with the nearest known one."""

import re
from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from models.errors import did_you_mean

Location = Sequence[str | int]
_MAX_SHOWN = 60  # characters of a value in a message
_SHOULD, _EXPECTED = "Input should be ", ", expected "
_PYDANTIC_WORDS = {
    "a valid string": "text",
    "a valid dictionary": "a section of keys",
    "a valid tuple": "a list",
    "a valid list": "a list",
}
_COUNT = re.compile(r"\w+ should have (at (?:least|most) \d+ \w+).*")
_BRANCH = re.compile(r"(function-\w+|dict|tuple|list)\[.*\]|\[key\]")


def problems_of(error: ValidationError, model: type[BaseModel], whole: str = "file") -> str:
    """Describe every problem of a validation error in one line, with its location.

    Args:
        error: what validation raised.
        model: the class that was validated.
        whole: name for the location of a problem that concerns no single key.
    """
    found: dict[str, list[str]] = {}
    problems = error.errors()
    for problem in problems:
        if problem["type"] == "too_short" and _is_whole_of(problem["loc"], problems):
            continue  # items that are wrong are not counted
        steps = [str(step) for step in problem["loc"] if not _is_branch(step)]
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"got an unknown key, expected {_known_keys(model, problem['loc'])}"
        elif problem["type"] == "missing":
            message = "got nothing, expected it to be given"
        elif message.startswith(_SHOULD):
            message = (
                f"got {_shown(problem)}{_EXPECTED}{_expected_words(message.removeprefix(_SHOULD))}"
            )
        elif count := _COUNT.fullmatch(message):
            message = f"got {_shown(problem)}{_EXPECTED}{count[1]}"
        found.setdefault(".".join(steps) or whole, []).append(message)
    return "; ".join(f"{location}: {_joined(messages)}" for location, messages in found.items())


def _is_whole_of(location: Location, problems: Sequence[ErrorDetails]) -> bool:
    """Return True if a problem is inside of a location."""
    depth = len(location)
    return any(
        len(own := problem["loc"]) > depth and own[:depth] == location for problem in problems
    )


def _is_branch(step: str | int) -> bool:
    """Return True if a step of a location names a branch of a union and no key of the file."""
    return isinstance(step, str) and _BRANCH.fullmatch(step) is not None


def _joined(messages: Sequence[str]) -> str:
    """Join the messages on one location; several occur only for the branches of a union."""
    first, *others = messages
    head = first.partition(_EXPECTED)[0] + _EXPECTED
    more = [other.removeprefix(head) for other in others if other.startswith(head)]
    return " or ".join([first, *more])


def _expected_words(text: str) -> str:
    """Translate what pydantic expects into words for the author of a file."""
    for name, word in _PYDANTIC_WORDS.items():
        text = text.replace(name, word)
    return re.sub(r" or instance of \w+", "", text)


def _shown(problem: ErrorDetails) -> str:
    """Format the given value for a message."""
    value = problem["input"]
    if value is None:
        return "nothing"
    if not isinstance(value, bool | int | float | date):
        text = repr(value)
        return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
    text = str(value).lower()
    return f"{text} without quotes" if problem["type"] == "string_type" else text


def one_of(name: str, known: Sequence[str]) -> str:
    """List the known names for an error on an unknown one, with the nearest of them."""
    return f"one of {', '.join(known)}{did_you_mean(name, known)}"


def _known_keys(model: type[BaseModel], location: Location) -> str:
    known = [name for section in sections_at(model, location[:-1]) for name in section.model_fields]
    return one_of(str(location[-1]), list(dict.fromkeys(known))) if known else "none"


def sections_at(model: type[BaseModel], location: Location) -> list[type[BaseModel]]:
    """Return the sections that may be at a location of a model: several for a union, none for a
    value.

    A step that is no field of a section is the tag of a union, which selects a section, or a key of
    a mapping or an index of a list, which changes nothing.
    """
    sections = [model]
    for step in location:
        known = [section for section in sections if step in section.model_fields]
        fields = [section.model_fields[str(step)] for section in known]
        tagged = [section for section in sections if _has_tag(section, step)]
        if fields:
            sections = [section for field in fields for section in _sections_of(field.annotation)]
        elif tagged:
            sections = tagged
    return sections


def _has_tag(section: type[BaseModel], tag: str | int) -> bool:
    annotations = [field.annotation for field in section.model_fields.values()]
    return any(get_origin(known) is Literal and tag in get_args(known) for known in annotations)


def _sections_of(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections_of(argument)
