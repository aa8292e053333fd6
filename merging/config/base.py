"""The base of all configurations: strict sections, numbers, the release, fingerprints."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from models.names import MAX_NAME, Name

CONFIG_FOLDER = Path(__file__).parents[1] / "configs"


def _no_truth_value(value: object) -> object:
    if isinstance(value, bool):
        word = str(value).lower()
        raise ValueError(f"got {word}, which YAML also makes of yes and no, expected a number")
    return value


_Number = BeforeValidator(_no_truth_value)
Rate = Annotated[float, _Number, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, _Number, Field(ge=1)]
Weight = Annotated[float, _Number, Field(ge=0, allow_inf_nan=False)]
_VERSION = rf"^[A-Za-z0-9][A-Za-z0-9.+_-]{{0,{MAX_NAME - 1}}}$"


class Section(BaseModel):
    """A section of a configuration: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def complete_by_task(values: Any, *sections: str) -> Any:
    """Complete the sections `<section>_by_task` of a configuration as read from YAML, which name
    only the differences, with the values of the common `<section>`. What is no dictionary stays as
    it is; validation refuses it."""
    if not isinstance(values, dict):
        return values
    values = dict(values)
    for section in sections:
        common, by_task = values.get(section, {}), values.get(f"{section}_by_task", {})
        if isinstance(common, dict) and isinstance(by_task, dict):
            values[f"{section}_by_task"] = {
                task: {**common, **own} if isinstance(own, dict) else own
                for task, own in by_task.items()
            }
    return values


class ReleaseConfig(Section):
    """Name and version of the artifact that a run releases."""

    name: Name
    version: Annotated[str, Field(pattern=_VERSION)] = "0.1.0"


Setting = BaseModel | str | int | float
"""A value that a result depends on, besides other results."""


def fingerprint(*settings: Setting) -> str:
    """Hash the values that a result depends on, in order: 16 hexadecimal digits."""
    values = [
        setting.model_dump(mode="json") if isinstance(setting, BaseModel) else setting
        for setting in settings
    ]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
