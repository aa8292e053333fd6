"""Markdown tables, and words for what a JSON schema says of a value."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]
_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}
_LENGTHS = {"minLength": "characters", "minItems": "items"}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; line breaks and bars in cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def code(value: object) -> str:
    """Return a value as inline code."""
    return f"`{value}`"


def words_for(schema: Schema, link: str = "") -> str:
    """Say what values a JSON schema allows: type, bounds, choices.

    Args:
        schema: schema of a value; `$ref` names a component.
        link: pattern of links to components, such as `#{}`; empty for names without links.
    """
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        return f"[{name}]({link.format(name.lower())})" if link else name
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(words_for(one, link) for one in schema[several]))
    if "const" in schema:
        return code(schema["const"])
    if "enum" in schema:
        return " or ".join(map(code, schema["enum"]))
    return _of_type(schema, link)


def _of_type(schema: Schema, link: str) -> str:
    kinds = schema.get("type", "any value")
    if not isinstance(kinds, str):
        return " or ".join(words_for({**schema, "type": kind}, link) for kind in kinds)
    kind = kinds
    if kind == "array":
        inner = schema.get("prefixItems") or [schema.get("items") or {}]
        return f"list of {', '.join(words_for(one, link) for one in inner)}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"by name: {words_for(schema['additionalProperties'], link)}"
    kind = "path" if schema.get("format") == "path" else kind
    bounds = [text.format(schema[key]) for key, text in _BOUNDS.items() if key in schema]
    bounds += [f"at least {schema[key]} {of}" for key, of in _LENGTHS.items() if key in schema]
    return ", ".join([kind, *bounds])
