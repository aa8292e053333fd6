"""The one table of offline families. Nothing registers itself on import."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merging.families.force_fields import FORCE_FIELDS
from merging.families.graphs import GRAPHS
from merging.families.molecules import MOLECULES
from merging.family import OfflineFamily, RunConfig
from models.errors import ConfigError
from models.validation import one_of

FAMILIES: tuple[OfflineFamily, ...] = (MOLECULES, GRAPHS, FORCE_FIELDS)
KINDS: Mapping[str, OfflineFamily] = {kind: family for family in FAMILIES for kind in family.kinds}


def family_of(path: Path, values: Mapping[str, Any]) -> OfflineFamily:
    """The family of a configuration: of the kind of its `network`; without one, models are
    fine-tuned from pre-trained weights, which are of molecules. Raises ConfigError: no such kind.
    """
    if "network" not in values:
        return MOLECULES
    network = values["network"]
    kind = str(network.get("kind") if isinstance(network, dict) else network)
    if kind not in KINDS:
        raise ConfigError(
            f"{path}: network.kind: got {kind!r}, expected {one_of(kind, tuple(KINDS))}"
        )
    return KINDS[kind]


def family_for(config: RunConfig) -> OfflineFamily:
    """The family that a configuration is of."""
    return KINDS[config.shape.kind]
