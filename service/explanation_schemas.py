"""Explanations as the HTTP API answers them; responses are documented by these models."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.data.alerts import Catalog
from models.domain.measured import BandMetric
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


Share = Annotated[float, Field(ge=0, le=1)]


class _Explanation(BaseModel):
    model_config = ConfigDict(extra="forbid")


# `domain`: how far to trust an answer.


class NeighbourOut(_Explanation):
    """A training molecule."""

    similarity: Share = Field(
        description="Tanimoto similarity of ECFP4 fingerprints of 1,024 bits", examples=[0.62]
    )
    row: int = Field(ge=0, description="its line in the table of the task; the first line is 1")
    smiles: str | None = Field(
        None, description="where the terms of the data allow it, and the operator has the data"
    )
    values: dict[str, float] | None = Field(
        None, description="with `smiles`: what was measured, by label"
    )


class BandOut(_Explanation):
    """What was measured on validation and test molecules whose nearest training molecule is about
    as similar; of the nearest band, where it is farther or nearer than all that were measured."""

    from_: Share = Field(alias="from", description="lowest similarity of the band")
    to: Share = Field(description="its end")
    molecules: int = Field(description="how many were measured")
    metric: BandMetric = Field(description="what `score` is")
    score: float = Field(examples=[0.84])
    error: float = Field(description="Brier score, or mean absolute error")
    error_of_base: float = Field(
        description=(
            "the same error of an answer that is the same for all molecules: the share of 1 in the"
            " band, or the median of the training molecules"
        )
    )


class ConformalOut(_Explanation):
    """A set of answers that holds the truth in about a share `confidence` of molecules like those
    of the validation subset."""

    confidence: Share = Field(examples=[0.9])
    set: list[int] | None = Field(
        None, description="of a class label: the classes; both if undecided, none if unlike either"
    )
    interval: list[float] | None = Field(
        None, description="of a number: from, to", min_length=2, max_length=2
    )
    coverage: dict[str, Share] = Field(
        description="on the scaffold test molecules, by class, or of `all`"
    )


class LabelDomainOut(_Explanation):
    """How far to trust the answer for a label."""

    band: BandOut | None = Field(None, description="absent where too few molecules were measured")
    conformal: ConformalOut | None = Field(
        None, description="absent where there were too few molecules, or the coverage did not hold"
    )
    spread: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description=(
            "where network and trees both answer: the distance of their answers, in log-odds or in"
            " the unit"
        ),
    )


class TaskDomainOut(_Explanation):
    """How far to trust the answers of a task."""

    nearest: list[NeighbourOut] = Field(description="the most similar training molecules")
    labels: dict[str, LabelDomainOut] = Field(description="by label, of those asked for")
