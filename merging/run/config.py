"""Reading the configuration of a run, of whatever kind of model it is."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from merging.config.base import CONFIG_FOLDER
from merging.config.reading import read_values
from merging.families.table import FAMILIES, family_of
from merging.family import RunConfig
from models.errors import ConfigError
from models.validation import problems_of

BUNDLED = tuple(dict.fromkeys(CONFIG_FOLDER / family.folder for family in FAMILIES))
"""Where the configurations are that come with the package."""


def load_config(path: Path) -> RunConfig:
    """Read a YAML file; a bare name is looked up among those that come with the package. The kind
    of its network says which family it is of (`merging.families.table.family_of`).

    Raises:
        ConfigError: the file is absent, is not YAML, or does not fit; every problem is named.
    """
    values: dict[str, Any] = read_values(path, BUNDLED)
    model = family_of(path, values).config
    try:
        config = model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {problems_of(error, model)}") from error
    config.check_variants(path)
    return config
