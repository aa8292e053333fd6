"""What pydantic found wrong, in words; an unknown key is answered with the nearest known one."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from models.errors import did_you_mean

Location = Sequence[str | int]


def problems_of(error: ValidationError, model: type[BaseModel], whole: str = "file") -> str:
    """Every problem in one line, each with the place where it is.

    Args:
        error: what validation raised.
        model: the class that was validated.
        whole: what a problem of no single place is called.
    """
    found = []
    for problem in error.errors():
        place = ".".join(map(str, problem["loc"])) or whole
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"got an unknown key, expected {_expected(model, problem['loc'])}"
        found.append(f"{place}: {message}")
    return "; ".join(found)


def one_of(name: str, known: Sequence[str]) -> str:
    """For an error about an unknown name: the known ones, and the nearest of them."""
    return f"one of {', '.join(known)}{did_you_mean(name, known)}"


def _expected(model: type[BaseModel], location: Location) -> str:
    known = [name for section in sections_at(model, location[:-1]) for name in section.model_fields]
    return one_of(str(location[-1]), list(dict.fromkeys(known))) if known else "none"


def sections_at(model: type[BaseModel], location: Location) -> list[type[BaseModel]]:
    """The sections that may stand at a place of a model: several for a union, none for a value.

    A step that is no field of a section is the tag of a union, which chooses among the sections, or
    a name in a mapping or a number in a list, which changes nothing.
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
