"""The page of the HTTP interface, from the OpenAPI document."""

from collections.abc import Iterator
from typing import Any

from docs_build.tables import code, table, words_for
from service.app import create_app
from service.settings import Settings

_INTRODUCTION = """# HTTP interface

The routes of the service, from its OpenAPI document (`GET /openapi.json`). `GET /docs` of a running
service shows the same and sends requests. [Errors](../errors.md) has what each refusal means,
[Requests, streams and files](../requests.md) how they are used.

"""
_LINK = "#{}"


def http_page() -> str:
    """Return the page, in Markdown."""
    document = create_app(Settings.model_construct()).openapi()
    rows = [
        (f"[`{method.upper()} {path}`](#{_anchor(operation)})", operation["summary"])
        for path, method, operation in _operations(document)
    ]
    text = _INTRODUCTION + table(("route", ""), rows)
    text += "".join(_operation(*found) for found in _operations(document))
    text += "## Bodies\n\nA field without a default must be given.\n\n"
    return text + "".join(
        _body(name, schema) for name, schema in sorted(document["components"]["schemas"].items())
    )


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield path, method, operation


def _anchor(operation: dict[str, Any]) -> str:
    return str(operation["operationId"])


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    heading = f"### {method.upper()} `{path}` {{ #{_anchor(operation)} }}\n\n"
    text = f"{heading}{operation['summary']}\n\n{operation.get('description', '')}\n\n"
    parameters = [
        (
            code(parameter["name"]),
            parameter["in"] + (", required" if parameter.get("required") else ""),
            words_for(parameter["schema"], _LINK),
            parameter.get("description", ""),
        )
        for parameter in operation.get("parameters", [])
    ]
    if parameters:
        text += table(("parameter", "in", "values", "meaning"), parameters)
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        text += f"Body, `{media_type}`: {words_for(content.get('schema', {}), _LINK)}\n\n"
    answers = [
        (status, response["description"], *_content(response))
        for status, response in operation["responses"].items()
    ]
    return text + table(("status", "", "media type", "body"), answers)


def _content(response: dict[str, Any]) -> tuple[str, str]:
    content = response.get("content", {})
    bodies = [words_for(one["schema"], _LINK) for one in content.values() if one.get("schema")]
    return ", ".join(map(code, content)), ", ".join(dict.fromkeys(bodies))


def _body(name: str, schema: dict[str, Any]) -> str:
    text = f"### {name}\n\n{schema.get('description', '').partition('Attributes:')[0].strip()}\n\n"
    if "properties" not in schema:
        return text + f"{words_for(schema, _LINK)}\n\n"
    required = schema.get("required", [])
    rows = [
        (
            code(field),
            words_for(described, _LINK),
            "" if field in required or "default" not in described else code(described["default"]),
            described.get("description", ""),
        )
        for field, described in schema["properties"].items()
    ]
    return text + table(("field", "values", "default", "meaning"), rows)
