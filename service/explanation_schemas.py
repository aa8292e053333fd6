"""Explanations as the HTTP API answers them; responses are documented by these models."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from models.data.alerts import Catalog

# `drugs`

Percentile = Annotated[float, Field(ge=0, le=100)]
"""Percentage of drugs with a lower answer, half of equal ones counted."""

# `alerts`


class AlertOut(BaseModel):
    """An occurrence of a substructure that a catalogue warns of."""

    model_config = ConfigDict(extra="forbid")

    catalog: Catalog
    name: str = Field(description="as RDKit calls it", examples=["nitro_group"])
    atoms: list[int] = Field(
        description="that match, from 0 in the order of `smiles`", examples=[[1, 0, 2]]
    )
