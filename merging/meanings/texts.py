"""The texts about labels that come with the package, or are in a configuration."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from merging.config.reading import read_values
from merging.meanings.toxcast import toxcast_label
from models.errors import ConfigError
from models.meaning import LabelText, TaskText
from models.task import TaskInfo
from models.validation import problems_of

FOLDER = Path(__file__).parent
_BY_NAME: dict[str, Callable[[str], LabelText]] = {"toxcast": toxcast_label}
"""Data sets whose labels are described by what their names say."""


def task_text(collection: str | TaskText, task: str, info: TaskInfo) -> TaskText:
    """Return the texts about a task's labels.

    Args:
        collection: the texts, or the name of a file in this folder, which has them by task.
        task: name of the task.
        info: its labels and target.

    Raises:
        ConfigError: there is no such collection, the collection does not have the task, the texts
            are about other labels, or `one` is missing for a class or given for a number.
    """
    labels, is_class = info.labels, info.target in ("multilabel", "multiclass")
    text = collection if isinstance(collection, TaskText) else _bundled(collection, task, labels)
    if missing := [label for label in labels if label not in text.labels]:
        raise ConfigError(f"meanings.{task}: got no text about label {missing[0]!r}")
    if strange := [label for label in text.labels if label not in labels]:
        expected = f"expected labels of the task, {', '.join(labels[:5])}"
        raise ConfigError(f"meanings.{task}: got a text about {strange[0]!r}, {expected}")
    for label, own in text.labels.items():
        if (own.one is not None) != is_class:
            got = f"meanings.{task}.labels.{label}: got {'no ' * is_class}`one`"
            expected = "what 1 means" if is_class else "none for a number"
            raise ConfigError(f"{got}, expected {expected}")
    return text


def _bundled(collection: str, task: str, labels: Sequence[str]) -> TaskText:
    known = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    if collection not in known:
        expected = f"expected one of {', '.join(known)}, or texts"
        raise ConfigError(f"meanings.{task}: got {collection!r}, {expected}")
    tasks = _collection(collection)
    if task not in tasks:
        expected = f"expected one of {', '.join(tasks)}"
        raise ConfigError(f"meanings.{task}: got no such task in {collection!r}, {expected}")
    section = dict(tasks[task])
    if task in _BY_NAME and "labels" not in section:
        section["labels"] = {label: _BY_NAME[task](label) for label in labels}
    try:
        return TaskText.model_validate(section)
    except ValidationError as error:
        problems = problems_of(error, TaskText)
        raise ConfigError(f"{FOLDER / collection}.yaml: {task}: {problems}") from error


@cache
def _collection(name: str) -> dict[str, Any]:
    return read_values(FOLDER / f"{name}.yaml", ())
