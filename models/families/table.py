"""All families of models.

A new kind of model is a file beside this one with a `ModelFamily`, a row in `ROWS`, and a case in
`tests/models/families/test_families.py`. Manifests, artifacts and the service then know it: they
find a family by the manifest's `backbone.kind`.
"""

from collections.abc import Iterable, Mapping
from functools import reduce
from operator import or_
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field

from models.data.schema import InputSchema
from models.errors import InvalidInputError
from models.families.atoms import AtomsFamily
from models.families.base import ModelFamily
from models.families.graphs import FeatureGraphFamily
from models.families.molecules import MoleculeFamily
from models.networks.base import NetworkShape
from models.task import Target

ROWS: tuple[ModelFamily, ...] = (MoleculeFamily(), FeatureGraphFamily(), AtomsFamily())
"""One object for every family."""

FAMILIES: Mapping[str, ModelFamily] = MappingProxyType(
    {kind: family for family in ROWS for kind in family.kinds}
)
"""By kind of network, as in the manifest's `backbone.kind`."""


def check_target(kind: str, task: str, target: Target) -> None:
    """Raises InvalidInputError: networks of this kind cannot answer a task with this target."""
    targets = FAMILIES[kind].targets
    if target not in targets:
        got = f"tasks.{task}.target: got {target!r} for a backbone of kind {kind!r}"
        raise InvalidInputError(f"{got}, expected one of {', '.join(targets)}")


if TYPE_CHECKING:
    AnyShape = NetworkShape
    AnyInput = InputSchema
else:
    # `kind` says which of these a manifest holds; a type checker knows only what they share.
    def _one_of(types: Iterable[type[BaseModel]]) -> Any:
        return Annotated[reduce(or_, dict.fromkeys(types)), Field(discriminator="kind")]

    AnyShape = _one_of(family.shape for family in ROWS)
    AnyInput = _one_of(family.schema for family in ROWS)
