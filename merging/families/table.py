"""The table of families for training and merging; an explicit list, nothing registers itself."""

from collections.abc import Mapping

from merging.families.force_fields import CHGNET_FORCE_FIELDS, FORCE_FIELDS
from merging.families.graphs import GRAPHS
from merging.families.molecules import MOLECULES
from merging.family import OfflineFamily

FAMILIES: tuple[OfflineFamily, ...] = (MOLECULES, GRAPHS, FORCE_FIELDS, CHGNET_FORCE_FIELDS)
KINDS: Mapping[str, OfflineFamily] = {kind: family for family in FAMILIES for kind in family.kinds}
"""Family by `kind` of the network."""
