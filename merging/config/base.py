"""merging.run.config.base"""

import hashlib
import json
from pathlib import Path
from typing import Annotated

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
)

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


class Section(BaseModel):
    """A section of a configuration: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def fingerprint(*parts: BaseModel | str | int) -> str:
    """A short hash of what a finished piece depends on: another configuration makes another
    piece."""
    text = json.dumps(
        [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in parts],
        sort_keys=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]
