"""Explanations as the HTTP API answers them; responses are documented by these models."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.data.alerts import Catalog
from models.experts.combination import ExpertName

# `atoms`


class BitOut(BaseModel):
    """A column of the fingerprint and what it contributes."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(
        description=(
            "a circular substructure, as SMILES of its atoms (several, where they share a column,"
            " between bars), or a descriptor of RDKit"
        ),
        examples=["CC(=O)O"],
    )
    atoms: list[int] = Field(
        description="where it lies; empty for a descriptor that is no sum over atoms"
    )
    contribution: float


class AtomsOfExpert(BaseModel):
    """What an expert contributes, already multiplied by its weight and scale."""

    model_config = ConfigDict(extra="forbid")

    weight: float = Field(description="the weights of a task sum to 1")
    atoms: list[float] = Field(
        description="for every heavy atom in the order of `smiles`, or for every node of a graph"
    )
    other: float = Field(description="of descriptors that are no sums over atoms; 0 of the network")
    bits: list[BitOut] | None = Field(
        None, description="of trees, the ten columns that contribute most, up or down"
    )


class AtomsOut(BaseModel):
    """An answer as a sum: `output` is `baseline` plus, over the experts, `atoms` and `other`."""

    model_config = ConfigDict(extra="forbid")

    scale: Literal["log_odds", "logit", "value", "log10_value"] = Field(
        description=(
            "what is summed: log-odds of the probability, the logit of a class, the value, or its"
            " logarithm to the base 10"
        )
    )
    output: float = Field(description="of which the answer is made")
    baseline: float = Field(
        description=(
            "without any contribution: the bias of the network's head, and what the trees answer"
            " for a fingerprint of zeros"
        )
    )
    experts: dict[ExpertName, AtomsOfExpert]


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
