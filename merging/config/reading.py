"""Reading of YAML: strict, with `extends`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ValidationError,
)

from models.errors import ConfigError
from models.validation import problems_of

Model = TypeVar("Model", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """Plain YAML in which a key that stands twice in one section is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node. Raises yaml.constructor.ConstructorError: a key is there twice."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := sorted({key for key in keys if keys.count(key) > 1 and key != "<<"}):
            problem = f"got {', '.join(twice)} twice in one section, expected each key once"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)


def read_config(path: Path, model: type[Model], bundled: Path) -> Model:
    """Read and check a YAML file, see `read_values`. Raises ConfigError: every problem is named."""
    try:
        return model.model_validate(read_values(path, (bundled,)))
    except ValidationError as error:
        raise ConfigError(f"{path}: {problems_of(error, model)}") from error


def read_values(path: Path, bundled: Sequence[Path]) -> dict[str, Any]:
    """Read the sections of a YAML file; a bare name is looked up in the folders `bundled`, of those
    that come with the package.

    `extends: other.yaml` takes over what another file says (beside it, or bundled); in each section
    the file's own keys count before the other's, and where it names its own tasks, what the other
    says of other tasks is left out. Who the other is (`_IDENTITY`) is not handed on: a setting
    without a name has its file's.

    Raises:
        ConfigError: the file is absent, is not YAML, holds no sections, or extends itself.
    """
    values = _read_values(path, bundled, ())
    if not isinstance(values, dict):
        found = "nothing" if values is None else "no sections"
        raise ConfigError(f"{path}: got {found}, expected sections, as in `setting: mine`")
    return values


def _read_values(path: Path, bundled: Sequence[Path], extended_by: tuple[Path, ...]) -> Any:
    places = (path, *(folder / path.name for folder in bundled))
    file = next((place for place in places if place.is_file()), None)
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
        raise ConfigError(f"{file}: not valid YAML: {error}") from error
    if not isinstance(values, dict) or "extends" not in values:
        return values
    name = values.pop("extends")
    if not (isinstance(name, str) and name):
        raise ConfigError(f"{file}: extends: got {name!r}, expected the name of a YAML file")
    base = _read_values(file.parent / name, bundled, (*extended_by, file))
    if not isinstance(base, dict):
        raise ConfigError(
            f"{file}: extends a file of {type(base).__name__}, expected a configuration"
        )
    if isinstance(values.get("tasks"), list):
        base = only_tasks(base, values["tasks"])
    base, parent = {key: base[key] for key in base if key not in _IDENTITY}, base
    if "setting" in parent:
        values = _named(values, file, parent)
    return {**base, **{section: _over(base.get(section), own) for section, own in values.items()}}


_IDENTITY = ("setting", "description", "release")


def _named(values: dict[str, Any], file: Path, parent: dict[str, Any]) -> dict[str, Any]:
    """The values with a setting of their own. Raises ConfigError: it would be the other's."""
    if "setting" not in values and file.stem.casefold() == str(parent["setting"]).casefold():
        expected = "expected `setting:` with another name (results are kept by it)"
        raise ConfigError(f"{file}: got no setting, and extends one of the file's name, {expected}")
    about = f"extends {parent['setting']}"
    return {"setting": file.stem, "description": about} | values


def _over(base: Any, own: Any) -> Any:
    return {**base, **own} if isinstance(base, dict) and isinstance(own, dict) else own


def only_tasks(values: dict[str, Any], tasks: list[Any]) -> dict[str, Any]:
    """A configuration without what it says of other tasks than these. What has another form than
    expected stays, for the validation to name."""
    kept = dict(values)
    for section in ("datasets", "finetune_by_task", "alignment_by_task"):
        if isinstance(values.get(section), dict):
            kept[section] = {task: own for task, own in values[section].items() if task in tasks}
    compare = values.get("compare")
    if isinstance(compare, dict):
        kept["compare"] = own = dict(compare)
        if isinstance(named := compare.get("ablation_tasks"), list | tuple):
            own["ablation_tasks"] = [task for task in named if task in tasks]
        if isinstance(trees := compare.get("forest_trees_by_task"), dict):
            own["forest_trees_by_task"] = {
                task: own for task, own in trees.items() if task in tasks
            }
    return kept
