"""All families of models.

To add a kind of model, add a file with a `ModelFamily` to this folder, a row to `ROWS`, and a case
to `tests/models/families/test_families.py`. Manifests, artifacts and the service look families up
by the manifest's `backbone.kind`.
"""

from collections.abc import Iterable, Mapping
from functools import reduce
from operator import or_
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field

from models.data.schema import InputSchema
from models.errors import InvalidInputError
from models.families.atoms import AtomsFamily, ChgnetFamily
from models.families.base import ModelFamily
from models.families.dmpnn import DmpnnFamily
from models.families.graphs import FeatureGraphFamily
from models.families.molecules import MoleculeFamily
from models.networks.base import NetworkShape
from models.task import Target

ROWS: tuple[ModelFamily, ...] = (
    MoleculeFamily(),
    FeatureGraphFamily(),
    AtomsFamily(),
    ChgnetFamily(),
    DmpnnFamily(),
)
"""All families."""

FAMILIES: Mapping[str, ModelFamily] = MappingProxyType(
    {kind: family for family in ROWS for kind in family.kinds}
)
"""Families by the kind of network, the manifest's `backbone.kind`."""


def check_target(kind: str, task: str, target: Target) -> None:
    """Raise InvalidInputError if networks of a kind do not support the target of a task."""
    targets = FAMILIES[kind].targets
    if target not in targets:
        got = f"tasks.{task}.target: got {target!r} for a backbone of kind {kind!r}"
        raise InvalidInputError(f"{got}, expected one of {', '.join(targets)}")


if TYPE_CHECKING:
    AnyShape = NetworkShape
    AnyInput = InputSchema
else:
    # At run time a union that `kind` discriminates; type checkers see only the base class.
    def _one_of(types: Iterable[type[BaseModel]]) -> Any:
        return Annotated[reduce(or_, dict.fromkeys(types)), Field(discriminator="kind")]

    AnyShape = _one_of(family.shape for family in ROWS)
    AnyInput = _one_of(family.schema for family in ROWS)
