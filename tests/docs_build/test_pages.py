"""The generated pages have everything that the code knows."""

import argparse
from importlib import import_module
from typing import Annotated

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel, Field

import gmerging
from docs_build.command_page import command_page, leaves_of
from docs_build.configuration_page import configuration_page, documented, sections_of
from docs_build.http_page import http_page
from docs_build.python_page import BEHIND, python_page
from docs_build.service_pages import metrics_page, settings_page
from docs_build.tables import table, words_for
from gmerging.cli.main import make_parser
from merging.config.base import CONFIG_FOLDER
from merging.families.molecule_config import MoleculeConfig
from merging.mergers.registry import MERGERS
from service.app import create_app
from service.settings import Settings, variable_names
from service.telemetry.metrics import Metrics
from tests.service.doubles import settings_of


def test_every_setting_has_its_default_and_its_meaning() -> None:
    rows = [line for line in settings_page().splitlines() if line.startswith("| `")]
    assert len(rows) == len(Settings.model_fields)
    for row, name, field in zip(
        rows, variable_names(), Settings.model_fields.values(), strict=True
    ):
        assert row.startswith(f"| `{name}` | ")
        assert row.endswith(f" | {field.description} |")
    assert "| `GMERGING_PORT` | integer, at least 0, at most 65535 | `8000` |" in rows[1]
    assert "the release `admet`" in settings_page()


def test_every_metric_that_is_shown_is_described() -> None:
    page = metrics_page()
    shown = Metrics(("smiles_syntax",)).exposition().decode()
    families = [
        family
        for family in text_string_to_metric_families(shown)
        if family.name.startswith("gmerging_") and not family.name.endswith("_created")
    ]
    assert len(families) > 20
    for family in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert f"| `{name}` | {family.type} | " in page
        assert f" | {family.documentation} |" in page
    assert "| `gmerging_requests_total` | counter | `route`, `method`, `status` |" in page


def test_every_route_status_and_body_is_described() -> None:
    page, document = http_page(), create_app(settings_of()).openapi()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            text = page.partition(f"### {method.upper()} `{path}` ")[2].partition("\n### ")[0]
            assert operation["summary"] in text
            for status in operation["responses"]:
                assert f"| {status} | " in text
    for name in document["components"]["schemas"]:
        assert f"\n### {name}\n" in page


def test_every_command_and_option_is_described() -> None:
    page = command_page()
    parsers = list(leaves_of(make_parser()))
    assert len(parsers) > 20
    for parser in parsers:
        text = page.partition(f"## `{parser.prog}`\n")[2].partition("\n## ")[0]
        for action in parser._actions:
            for name in action.option_strings:
                assert f"`{name}`" in text or name in ("-h", "--help"), f"{parser.prog} {name}"


def test_examples_and_choices_of_a_command_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser("gmerging")
    added = parser.add_subparsers()
    predict = added.add_parser("predict", epilog="examples:\n  gmerging predict a.csv  # b\n")
    predict.add_argument("file", help="of %(type)s", type=str)
    predict.add_argument("more", help="others", nargs="*")
    predict.add_argument("--format", choices=("csv", "json"), default="csv", help="of the answers")
    monkeypatch.setattr("docs_build.command_page.make_parser", lambda: parser)
    page = command_page()
    assert "Examples:\n\n```sh\ngmerging predict a.csv  # b\n```" in page
    assert "| `--format` | `csv` | of the answers (`csv`, `json`) |" in page
    assert "| `file` | required | of <class 'str'> |" in page
    assert "| `more` |  | others |" in page


def test_every_key_of_every_section_has_a_meaning_or_a_name_that_says_it() -> None:
    page = configuration_page()
    sections = set(sections_of(MoleculeConfig))
    assert len(sections) > 15
    for section in sections:
        text = page.partition(f"### {section.__name__}\n")[2].partition("\n### ")[0]
        for name in section.model_fields:
            assert f"\n| `{name}` | " in text, f"{section.__name__}.{name}"
    for path in CONFIG_FOLDER.rglob("*.yaml"):
        assert f"| `{path.relative_to(CONFIG_FOLDER)}` | " in page
    for name, spec in MERGERS.items():
        text = page.partition(f"### `{name}`\n")[2].partition("\n### ")[0]
        assert spec.paper in text
        for option in spec.options.model_fields:
            assert f"| `{option}` | " in text


def test_meanings_are_those_of_the_docstring_and_of_its_bases() -> None:
    class Base(BaseModel):
        """Base.

        Attributes:
            rate: of Adam.
        """

        rate: float = 1e-3

    class Section(Base):
        """A section.

        Attributes:
            first, second: of two things.
        """

        first: Annotated[int, Field(ge=1)] = 1
        second: int = 2

    about, meanings = documented(Section)
    assert about == "A section."
    assert meanings == {"rate": "of Adam.", "first": "of two things.", "second": "of two things."}


def test_the_public_names_are_on_the_page_of_python() -> None:
    page = python_page()
    for name in gmerging.__all__:
        found = getattr(gmerging, name)
        assert f"::: {found.__module__}.{name}\n" in page
    for path in BEHIND:
        module, _, name = path.rpartition(".")
        assert callable(getattr(import_module(module), name)), path


def test_schemas_in_words() -> None:
    link = "#{}"
    for schema, words in (
        ({"type": "integer", "minimum": 1, "maximum": 9}, "integer, at least 1, at most 9"),
        ({"type": "number", "exclusiveMinimum": 0}, "number, above 0"),
        ({"type": ["string", "null"]}, "string or null"),
        ({"enum": ["a", "b"]}, "`a` or `b`"),
        ({"const": "a"}, "`a`"),
        ({"$ref": "#/components/schemas/GraphIn"}, "[GraphIn](#graphin)"),
        ({"type": "array", "items": {"type": "string"}, "minItems": 1}, "list of string"),
        (
            {"type": "array", "prefixItems": [{"type": "string"}, {"type": "null"}]},
            "list of string, null",
        ),
        ({"type": "object", "additionalProperties": {"type": "boolean"}}, "by name: boolean"),
        ({"anyOf": [{"type": "string", "format": "path"}, {"type": "null"}]}, "path or null"),
        ({}, "any value"),
    ):
        assert words_for(schema, link) == words
    assert words_for({"$ref": "#/$defs/A"}) == "A"
    assert table(("a",), [("b|c\nd",)]) == "| a |\n| --- |\n| b\\|c d |\n\n"
