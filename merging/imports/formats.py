"""Formats of models that somebody brought: a row for each, told apart by what their files hold."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from merging.imports.brought import Base, Brought, Merged
from merging.imports.chemprop_format import ChempropFormat
from merging.imports.config import ImportConfig, Method
from merging.imports.hu2020_format import HuFormat
from models.data.schema import InputSchema
from models.errors import ConfigError
from models.task import TaskInfo


class Format(Protocol):
    """What an import asks of a format.

    Attributes:
        name: for messages.
        methods: the methods that it has, each with the rank where none is asked for.
    """

    name: str
    methods: Mapping[Method, int]

    def reads(self, path: Path) -> bool:
        """Return whether a file or folder looks like this format; the last format reads all."""
        ...

    def check(self, config: ImportConfig) -> None:
        """Raise ConfigError if the request has an option that this format does not."""
        ...

    def models(self, config: ImportConfig) -> Mapping[str, Brought]:
        """Read the models by task. Raises CheckpointError: one cannot be read."""
        ...

    def base(self, config: ImportConfig) -> Base | None:
        """Read the base, if one is named. Raises CheckpointError: it cannot be read."""
        ...

    def schema(self, config: ImportConfig, models: Mapping[str, Any]) -> InputSchema:
        """Return the input schema of the artifact. Raises ConfigError: the models read molecules
        in different ways."""
        ...

    def reading(self, config: ImportConfig) -> str:
        """Words for how molecules are read: "from their canonical SMILES"."""
        ...

    def merge(
        self,
        config: ImportConfig,
        infos: Mapping[str, TaskInfo],
        models: Mapping[str, Any],
        schema: Any,
        work: Path,
    ) -> tuple[Merged, dict[str, float]]:
        """Merge the models by the configuration's method.

        Returns:
            The model, and `merging.imports.difference.differences` by task; empty if they were
            not measured.

        Raises:
            ConfigError: the models do not fit together, or a difference cannot be reached.
            DataError: no molecule of the file can be read.
        """
        ...


FORMATS: tuple[Format, ...] = (HuFormat(), ChempropFormat())


def format_of(config: ImportConfig) -> Format:
    """Return the format of the models. Raises ConfigError: they have several."""
    found = {task: _format(Path(source.path)) for task, source in config.models.items()}
    (first, chosen), *others = found.items()
    for task, other in others:
        if other is not chosen:
            got = f"{task}: got {other.name}, expected {chosen.name}, as {first}"
            raise ConfigError(f"{got}: one artifact reads a molecule once")
    return chosen


def require(chosen: Format, config: ImportConfig) -> None:
    """Raise ConfigError if the method or an option of a request is none of the format's."""
    if config.method not in chosen.methods:
        known = ", ".join(chosen.methods)
        raise ConfigError(f"method: got {config.method} with {chosen.name}, expected {known}")
    chosen.check(config)


def _format(path: Path) -> Format:
    return next(one for one in FORMATS if one.reads(path))
