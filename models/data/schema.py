"""models.data.schema"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.data.smiles import READING_RULE


class _Schema(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MoleculeInput(_Schema):
    """Molecules, as text or as graphs in the vocabulary of Hu et al. 2020
    (`models.data.molecule.MolGraph`).

    Attributes:
        reading_rule: by which molecules were read when its scores were measured
            (`models.data.smiles.READING_RULE`); 1 where a manifest does not say. Whatever it is,
            molecules are read by today's rule.
    """

    kind: Literal["molecule"] = "molecule"
    reading_rule: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _check_rule(self) -> Self:
        if self.reading_rule > READING_RULE:
            got = f"reading_rule: got {self.reading_rule}, expected at most {READING_RULE}"
            raise ValueError(f"{got}: a newer version of G-Merging reads it")
        return self


class FeatureInput(_Schema):
    """Graphs with numeric node features.

    Attributes:
        num_features: by task, how many numbers a node has. Where that is not the network's width,
            the task brings an encoder.
    """

    kind: Literal["graph"] = "graph"
    num_features: dict[str, Annotated[int, Field(ge=1)]]


class AtomsInput(_Schema):
    """Atoms with positions, in a periodic cell or in none (`models.data.atoms.Atoms`).

    Attributes:
        elements: by task, the atomic numbers that it was trained on; others are refused.
    """

    kind: Literal["atoms"] = "atoms"
    elements: dict[
        str, Annotated[tuple[Annotated[int, Field(ge=1, le=118)], ...], Field(min_length=1)]
    ]


InputSchema = Annotated[MoleculeInput | FeatureInput | AtomsInput, Field(discriminator="kind")]
