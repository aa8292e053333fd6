"""Reading the configuration of a run of any family."""

from pathlib import Path

from pydantic import ValidationError

from merging.config.base import CONFIG_FOLDER
from merging.config.reading import read_values
from merging.families.molecules import MOLECULES
from merging.families.table import FAMILIES, KINDS
from merging.family import OfflineFamily, RunConfig
from models.errors import ConfigError
from models.validation import one_of, problems_of

BUNDLED = tuple(dict.fromkeys(CONFIG_FOLDER / family.config_folder for family in FAMILIES))
"""Folders of the bundled configurations."""


def load_config(path: Path) -> RunConfig:
    """Read a configuration from a YAML file; a bare name is looked up among the bundled ones.

    The family follows from the kind of `network`; a configuration without it is one of molecules,
    which are fine-tuned from pre-trained weights.

    Raises:
        ConfigError: the file is missing, is not YAML, or is invalid; every problem is named.
    """
    values = read_values(path, BUNDLED)
    family: OfflineFamily = MOLECULES
    if "network" in values:
        network = values["network"]
        kind = str(network.get("kind") if isinstance(network, dict) else network)
        if kind not in KINDS:
            expected = one_of(kind, tuple(KINDS))
            raise ConfigError(f"{path}: network.kind: got {kind!r}, expected {expected}")
        family = KINDS[kind]
    try:
        config = family.config.model_validate(values)
        config.check_variants()
    except ValidationError as error:
        raise ConfigError(f"{path}: {problems_of(error, family.config)}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return config
