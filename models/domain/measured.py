"""What was measured of a label's answers: their error by similarity to the training molecules, and
conformal sets that hold the truth in a stated share of cases."""

from bisect import bisect_right
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from models.task import Scale

BandMetric = Literal["roc_auc", "mae"]
"""The score of a band: of a class label ROC-AUC, of a number the mean absolute error."""
Share = Annotated[float, Field(ge=0, le=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Band(_Frozen):
    """Errors on the validation and test molecules whose nearest training molecule has a similarity
    of `start` up to, not including, `end`; the end of the last band belongs to it.

    Attributes:
        start, end: of the band, in [0, 1].
        molecules: number of molecules that were measured.
        metric: what `score` is.
        score: on them.
        error: of a class label the Brier score, of a number the mean absolute error.
        error_of_base: the error of the best answer that is the same for all molecules and known
            before: of a class label that of the share of 1 among the band's molecules, of a number
            that of the median of the training molecules.
    """

    start: Share
    end: Share
    molecules: int = Field(ge=1)
    metric: BandMetric
    score: FiniteFloat
    error: FiniteFloat
    error_of_base: FiniteFloat


LEAST_COVERAGE = 0.85
"""Sets hold if they have the truth of this share of the test molecules, of every class."""


class Conformal(_Frozen):
    """Thresholds of split-conformal prediction (Vovk et al. 2005), fitted on the validation
    molecules and judged on the test molecules. Those that did not hold are kept to say so.

    Attributes:
        thresholds: of a class label two, for class 0 and 1 (Mondrian): a class is in the set if one
            minus its probability is at most its threshold. Of a number one: the greatest distance
            of the truth from the answer, of their logarithms with scale `log10`.
        coverage: share of the test molecules, by class or of all, whose truth is in the set.
    """

    thresholds: Annotated[tuple[FiniteFloat, ...], Field(min_length=1, max_length=2)]
    coverage: tuple[Share, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.coverage) != len(self.thresholds):
            counts = f"{len(self.coverage)} for {len(self.thresholds)} thresholds"
            raise ValueError(f"coverage: got {counts}, expected one for each")
        return self

    @property
    def holds(self) -> bool:
        """Whether the sets may be shown: their coverage is at least `LEAST_COVERAGE`."""
        return min(self.coverage) >= LEAST_COVERAGE

    def classes(self, probability: float) -> list[int]:
        """Return the set of a class label: 0, 1, both or none, by the probability of 1."""
        scores = probability, 1 - probability
        return [k for k, score in enumerate(scores) if score <= self.thresholds[k]]

    def interval(self, value: float, scale: Scale) -> list[float]:
        """Return the ends of the set of a number."""
        (reach,) = self.thresholds
        if scale == "log10":
            return [value / 10**reach, value * 10**reach]
        return [value - reach, value + reach]


class MeasuredLabel(_Frozen):
    """What was measured of a label.

    Attributes:
        bands: by rising similarity, without gaps, from the lowest to the highest that was measured;
            empty if there were too few molecules.
        conformal: None if there were too few molecules.
    """

    bands: tuple[Band, ...] = ()
    conformal: Conformal | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        starts, ends = [band.start for band in self.bands], [band.end for band in self.bands]
        if starts[1:] != ends[:-1] or any(band.start > band.end for band in self.bands):
            got = f"bands: got starts {starts} and ends {ends}"
            raise ValueError(f"{got}, expected neighbouring ones, in order")
        return self

    def band(self, similarity: float) -> Band | None:
        """Return the band of a similarity in [0, 1], the nearest one if it is outside of all; None
        if the label has no bands."""
        if not self.bands:
            return None
        return self.bands[bisect_right([band.start for band in self.bands[1:]], similarity)]
