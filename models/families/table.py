"""All families of models. A new one is a row here."""

from collections.abc import Iterable, Mapping
from functools import reduce
from operator import or_
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field

from models.data.schema import InputSchema
from models.families.atoms import AtomsFamily
from models.families.base import ModelFamily
from models.families.graphs import FeatureGraphFamily
from models.families.molecules import MoleculeFamily
from models.networks.base import NetworkShape

ROWS: tuple[ModelFamily, ...] = (
    MoleculeFamily(),
    FeatureGraphFamily(),
    AtomsFamily(),
)
"""One object for each family; the first one's networks are what a manifest is taken to be of."""

FAMILIES: Mapping[str, ModelFamily] = MappingProxyType(
    {kind: family for family in ROWS for kind in family.kinds}
)
"""By kind of network, as in the manifest's `backbone.kind`."""

if TYPE_CHECKING:
    AnyShape = NetworkShape
    AnyInput = InputSchema
else:
    # `kind` says which of these a manifest holds; a type checker knows only what they share.
    def _one_of(types: Iterable[type[BaseModel]]) -> Any:
        return Annotated[reduce(or_, dict.fromkeys(types)), Field(discriminator="kind")]

    AnyShape = _one_of(family.shape for family in ROWS)
    AnyInput = _one_of(family.schema for family in ROWS)
