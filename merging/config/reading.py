"""Reading of YAML configurations: strict, with `extends`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from models.errors import ConfigError
from models.validation import problems_of

Model = TypeVar("Model", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a repeated key of a section is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct the mapping of a node. Raises ConstructorError: a key is repeated."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := sorted({key for key in keys if keys.count(key) > 1 and key != "<<"}):
            problem = f"got {', '.join(twice)} twice in one section, expected each key once"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)


def read_config(path: Path, model: type[Model], bundled: Path) -> Model:
    """Read a YAML file into a model of its sections, see `read_values`.

    Args:
        path: of the file, or the bare name of a file in the folder `bundled` of the package.
        model: class of the configuration.
        bundled: folder of the package.

    Raises:
        ConfigError: the file cannot be read, or its values do not fit; every problem is named.
    """
    try:
        return model.model_validate(read_values(path, (bundled,)))
    except ValidationError as error:
        raise ConfigError(f"{path}: {problems_of(error, model)}") from error


def read_values(path: Path, bundled: Sequence[Path]) -> dict[str, Any]:
    """Read the sections of a YAML file.

    `extends: other.yaml` inherits from another file, beside it or bundled: a section's keys
    override those of the other file, and if the file names its tasks, what the other says of other
    tasks is dropped. The other's `setting`, `description` and `release` are not inherited; a file
    without a `setting` gets its own name.

    Args:
        path: of the file, or the bare name of a file in one of the folders `bundled`.
        bundled: folders of the package.

    Raises:
        ConfigError: the file is absent, is not YAML, holds no sections, extends itself, or extends
            files that differ.
    """
    values = _read_values(path, bundled, ())
    if not isinstance(values, dict):
        found = "nothing" if values is None else "no sections"
        raise ConfigError(f"{path}: got {found}, expected sections, as in `setting: mine`")
    return values


def _read_values(path: Path, bundled: Sequence[Path], extended_by: tuple[Path, ...]) -> Any:
    candidates = (path, *(folder / path.name for folder in bundled))
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        known = ", ".join(
            sorted(found.name for folder in bundled for found in folder.glob("*.yaml"))
        )
        where = f"{extended_by[-1]}: extends: " if extended_by else ""
        found = f"got no configuration at {path}, expected a YAML file or one of: {known}"
        raise ConfigError(where + found)
    if file in extended_by:
        raise ConfigError(f"{file}: extends itself, expected another file")
    try:
        values = yaml.load(file.read_bytes(), _Loader)  # bytes: UTF-8 or, by its mark, UTF-16
    except (yaml.YAMLError, RecursionError) as error:
        is_text = isinstance(error, yaml.scanner.ScannerError | yaml.parser.ParserError)
        remedy = f"; {_QUOTES}" if is_text else ""
        raise ConfigError(f"{file}: not valid YAML: {error}{remedy}") from error
    if not isinstance(values, dict) or "extends" not in values:
        return values
    base = _base(values.pop("extends"), values, file, bundled, (*extended_by, file))
    if isinstance(values.get("tasks"), list):
        base = only_tasks(base, values["tasks"])
    base, parent = {key: base[key] for key in base if key not in _IDENTITY}, base
    if "setting" in parent:
        values = _named(values, file, parent)
    sections = {name: _overridden(base.get(name), value) for name, value in values.items()}
    return {**base, **sections}


def _base(
    extends: Any,
    own: Mapping[str, Any],
    file: Path,
    bundled: Sequence[Path],
    extended_by: tuple[Path, ...],
) -> dict[str, Any]:
    """Read what a file extends: one file, or several that are joined."""
    names = extends if isinstance(extends, list) and len(extends) > 1 else [extends]
    if not all(isinstance(name, str) and name for name in names):
        expected = "expected the name of a YAML file, or a list of two or more"
        raise ConfigError(f"{file}: extends: got {extends!r}, {expected}")
    bases = {}
    for name in names:
        bases[name] = base = _read_values(file.parent / name, bundled, extended_by)
        if not isinstance(base, dict):
            raise ConfigError(
                f"{file}: extends a file of {type(base).__name__}, expected a configuration"
            )
    return base if len(bases) == 1 else _joined(bases, own, file)


_QUOTES = "a text that begins with %, or has [, {, : or # in it, goes into quotes"
_IDENTITY = ("setting", "description", "release")


def _named(values: dict[str, Any], file: Path, parent: dict[str, Any]) -> dict[str, Any]:
    """Fill in `setting` and `description` of a file that extends another.

    The setting is the file's name. Raises ConfigError: that is the extended file's setting.
    """
    if "setting" not in values and file.stem.casefold() == str(parent["setting"]).casefold():
        expected = "expected `setting:` with another name (results are kept by it)"
        raise ConfigError(f"{file}: got no setting, and extends one of the file's name, {expected}")
    about = f"extends {parent['setting']}"
    return {"setting": file.stem, "description": about} | values


def _overridden(base: Any, value: Any) -> Any:
    """A section of the extended file, overridden key by key; any other value replaces it."""
    return {**base, **value} if isinstance(base, dict) and isinstance(value, dict) else value


_BY_TASK = ("finetune_by_task", "alignment_by_task", "forest_by_task")
_TASK_SECTIONS = ("datasets", "meanings", *_BY_TASK)


def _joined(
    bases: Mapping[str, dict[str, Any]], own: Mapping[str, Any], file: Path
) -> dict[str, Any]:
    """Join the sections of several files: the tasks of all, with what is said by task.

    Other sections in which they differ are left out where the file itself has them, in `own`.
    Raises ConfigError: it has not, or the files differ in what they say of a task.
    """
    joined: dict[str, Any] = {}
    dropped = {"description", "release"}
    for name, base in bases.items():
        for section, value in base.items():
            known = joined.setdefault(section, value)
            alike = {type(known), type(value)}
            if alike == {list} and section in ("tasks", "related"):
                joined[section] = [*known, *(entry for entry in value if entry not in known)]
            elif alike == {dict} and section in _TASK_SECTIONS:
                joined[section] = {**value, **known}
                differing = [task for task in known if value.get(task, known[task]) != known[task]]
                _check_same(differing, section, name, file)
            elif section == "setting":
                joined[section] = " and ".join(dict.fromkeys((str(known), str(value))))
            elif section in own and value != known:
                dropped.add(section)
            elif section not in dropped:
                # A section of this file would take their place.
                _check_same([section] if value != known else [], "sections", name, file)
    return {section: value for section, value in joined.items() if section not in dropped}


def _check_same(differing: Sequence[str], what: str, name: str, file: Path) -> None:
    if differing:
        got = f"{what} {', '.join(differing)} of {name} that differ from the others'"
        raise ConfigError(f"{file}: extends: got {got}, expected the same ones")


def only_tasks(values: dict[str, Any], tasks: list[Any]) -> dict[str, Any]:
    """Drop from a configuration what it says of other tasks than `tasks`.

    Values of an unexpected type are kept, for the validation to report.
    """

    def only(by_task: dict[str, Any]) -> dict[str, Any]:
        return {task: value for task, value in by_task.items() if task in tasks}

    kept = dict(values)
    for section in _TASK_SECTIONS:
        if isinstance(values.get(section), dict):
            kept[section] = only(values[section])
    if isinstance(values.get("one_pass"), dict):
        kept["one_pass"] = _only_in_one_pass(values["one_pass"], tasks)
    if isinstance(groups := values.get("related"), list | tuple):
        kept["related"] = _related(groups, tasks)
    if isinstance(values.get("compare"), dict):
        kept["compare"] = compare = dict(values["compare"])
        if isinstance(named := compare.get("ablation_tasks"), list | tuple):
            compare["ablation_tasks"] = [task for task in named if task in tasks]
        if isinstance(trees := compare.get("forest_trees_by_task"), dict):
            compare["forest_trees_by_task"] = only(trees)
    return kept


def _only_in_one_pass(section: dict[str, Any], tasks: list[Any]) -> dict[str, Any]:
    """`only_tasks` for a section of joint alignment."""
    kept = dict(section)
    for name in ("task_weights", "teachers_by_task"):
        if isinstance(by_task := section.get(name), dict):
            kept[name] = {task: value for task, value in by_task.items() if task in tasks}
    if isinstance(section.get("pool"), dict):
        kept["pool"] = pool = dict(section["pool"])
        if isinstance(most := pool.get("most_by_task"), dict):
            pool["most_by_task"] = {task: value for task, value in most.items() if task in tasks}
        if isinstance(named := pool.get("tasks"), list | tuple):
            pool["tasks"] = [task for task in named if task in tasks]
    return kept


def _related(groups: Sequence[Any], tasks: list[Any]) -> list[Any]:
    """Return groups without the tasks that are dropped, and without groups of fewer than two."""
    kept = [
        [task for task in group if task in tasks] if isinstance(group, list | tuple) else group
        for group in groups
    ]
    return [group for group in kept if not isinstance(group, list) or len(group) > 1]
