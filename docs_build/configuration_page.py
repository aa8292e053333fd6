"""The page of the YAML configurations, from the classes that read them."""

import inspect
import types
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import griffe
import yaml
from pydantic import BaseModel

from docs_build.tables import code, table, words_for
from merging.config.base import CONFIG_FOLDER
from merging.families.table import FAMILIES
from merging.imports.config import ImportConfig
from merging.mergers.registry import MERGERS
from merging.studies.experts.config import ExpertsConfig
from merging.training.pretraining import PretrainConfig

_INTRODUCTION = """# Configuration

Offline commands read a YAML file (`--config`), which may extend another (`extends: other.yaml`). An
unknown key, or one that is given twice, is an error that names the nearest known key. A key without
a default must be given. [Train and merge your own tasks](../own-tasks.md) has examples.

"""
_USED_BY: Mapping[type[BaseModel], str] = {
    PretrainConfig: "`gmerging pretrain`",
    ExpertsConfig: "`gmerging study experts`",
    ImportConfig: "`gmerging import-models`",
}


def configuration_page() -> str:
    """Return the page, in Markdown."""
    used_by: dict[type[BaseModel], str] = {
        family.config: f"a run of kind {', '.join(map(code, family.kinds))}" for family in FAMILIES
    }
    used_by |= _USED_BY
    sections = list(dict.fromkeys(found for root in used_by for found in sections_of(root)))
    text = _INTRODUCTION + table(
        ("file of", "read as"), ((used, _link(root)) for root, used in used_by.items())
    )
    text += "## Files that come with the package\n\n" + _bundled()
    text += "## Sections\n\n" + "".join(map(_section, sections))
    return text + "## Mergers\n\n`merge: {method, options}`.\n\n" + _mergers()


def sections_of(config: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield a configuration's class and those of all sections below it."""
    yield config
    for field in config.model_fields.values():
        for found in _classes(field.annotation):
            yield from sections_of(found)


def _classes(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for inner in get_args(annotation):
        yield from _classes(inner)


def _link(section: type[BaseModel]) -> str:
    return f"[{section.__name__}](#{section.__name__.lower()})"


def _bundled() -> str:
    files = sorted(CONFIG_FOLDER.rglob("*.yaml"))
    values = {path: yaml.safe_load(path.read_text()) for path in files}
    return table(
        ("file", ""),
        (
            (code(path.relative_to(CONFIG_FOLDER)), values[path].get("description", ""))
            for path in files
        ),
    )


def _section(section: type[BaseModel]) -> str:
    properties = section.model_json_schema().get("properties", {})
    about, meanings = documented(section)
    rows = []
    for name, field in section.model_fields.items():
        default = (
            ""
            if field.is_required()
            else code(_shown(field.get_default(call_default_factory=True)))
        )
        values = words_for({k: v for k, v in properties[name].items() if k != "default"}, "#{}")
        rows.append((code(name), values, default, field.description or meanings.get(name, "")))
    heading = f"### {section.__name__}\n\n{about}\n\n"
    return heading + table(("key", "values", "default", "meaning"), rows)


def _shown(value: object) -> object:
    """Return a default as YAML; a section's is {}, the defaults of its own keys."""
    if isinstance(value, BaseModel):
        return "{}"
    return yaml.safe_dump(_as_lists(value), default_flow_style=True).partition("\n...")[0].strip()


def _as_lists(value: object) -> object:
    return [_as_lists(one) for one in value] if isinstance(value, tuple) else value


def documented(section: type[BaseModel]) -> tuple[str, Mapping[str, str]]:
    """Return what a class' docstring says of it, and of its fields and those of its bases."""
    about, meanings = "", dict[str, str]()
    for base in reversed([base for base in section.__mro__ if issubclass(base, BaseModel)]):
        if base is BaseModel or not base.__doc__:
            continue
        parsed = griffe.Docstring(inspect.cleandoc(base.__doc__)).parse("google")
        for block in parsed:
            if block.kind is griffe.DocstringSectionKind.attributes:
                for attribute in block.value:
                    # griffe reads "a, b: ..." as an attribute "a," of type "b"
                    names = f"{attribute.name} {attribute.annotation or ''}".split(",")
                    meanings |= {name.strip(): attribute.description for name in names}
        texts = [one.value for one in parsed if one.kind is griffe.DocstringSectionKind.text]
        about = "\n\n".join(texts)
    return about, meanings


def _mergers() -> str:
    text = ""
    for spec in MERGERS.values():
        needs = [f"networks of kind {', '.join(map(code, spec.kinds))}"] if spec.kinds else []
        needs += ["unlabelled graphs of every task"] if spec.calibrated else []
        text += f"### `{spec.name}`\n\n{spec.title}: {spec.paper}."
        text += f" Needs {' and '.join(needs)}.\n\n" if needs else "\n\n"
        if spec.options.model_fields:
            text += _section(spec.options).partition("\n\n")[2]
    return text
