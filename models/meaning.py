"""What the labels of a task mean: texts for people, how many molecules have them, and how well a
model predicts them. Travels in the artifact's manifest (`TaskInfo.meaning`)."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, model_validator

Direction = Literal["good", "bad", "neither"]
"""Whether a high answer is good, bad, or neither for a substance that is to be used. `bad` is also
a sign of a possible hazard. `neither` where it depends on the use, or says nothing about it."""
Counted = Literal["molecules", "graphs", "nodes", "pairs", "structures"]
"""What has the labels."""
LabelMetric = Literal["roc_auc", "auprc", "recall", "mae", "spearman", "forces_mae"]
"""The test scores of single labels. `recall` is the share of the rows of a class for which the
class is the most probable; `forces_mae` is over the components of the forces."""
METRIC_TITLES: dict[LabelMetric, str] = {
    "roc_auc": "ROC-AUC",
    "auprc": "AUPRC",
    "recall": "recall",
    "mae": "mean absolute error",
    "spearman": "Spearman's rank correlation",
    "forces_mae": "mean absolute error of forces",
}
_DIRECTIONS: dict[Direction, str] = {
    "good": "high is good",
    "bad": "high is bad",
    "neither": "high is neither good nor bad",
}


def _check_line(text: str) -> str:
    if not text.isprintable() or text != text.strip():
        raise ValueError(f"got {text[:64]!a}, expected one line of text, no space around it")
    return text


Line = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_check_line)]
"""Text for people, in one line."""


def _without() -> Any:
    """Return a field that is None by default, and then not written: there are many labels."""
    return Field(None, exclude_if=lambda value: value is None)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LabelText(_Frozen):
    """What a person should know about a label.

    Attributes:
        name: the label in plain words.
        measured: what was measured, in one or two sentences.
        direction: whether a high answer is good.
        one: of a class label, what 1 means; None for a number.
    """

    name: Line
    measured: Line
    direction: Direction
    one: Line | None = _without()


class TaskText(_Frozen):
    """What a person should know about a task; also a section of a configuration.

    Attributes:
        source: where the data are from, with the paper.
        terms: the terms under which the data may be used.
        may_show: whether these allow to show structures and measured values of the training
            molecules to whoever asks for predictions; not, unless somebody says so.
        labels: texts by label.
    """

    source: Line
    terms: Line
    may_show: bool = False
    labels: dict[str, LabelText] = Field(min_length=1)


class Counts(_Frozen):
    """Numbers of rows by subset."""

    train: int = Field(ge=0)
    valid: int = Field(ge=0)
    test: int = Field(ge=0)

    @property
    def total(self) -> int:
        """Number of rows of all subsets."""
        return self.train + self.valid + self.test


class Distribution(_Frozen):
    """The known numbers of a regression label, in its unit.

    Attributes:
        mean, deviation: mean and standard deviation.
        quartiles: 25 %, 50 % and 75 %.
    """

    mean: FiniteFloat
    deviation: FiniteFloat
    quartiles: tuple[FiniteFloat, FiniteFloat, FiniteFloat]


class LabelScore(_Frozen):
    """A test score of a label, with its 95 % interval: percentile bootstrap over the test rows,
    1,000 draws.

    Attributes:
        metric: which score.
        value: on all test rows that have the label.
        low, high: ends of the interval.
        unit: of an error.
    """

    metric: LabelMetric
    value: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat
    unit: str = Field("", exclude_if=lambda unit: not unit)


class LabelMeaning(LabelText):
    """What a label means, how many rows have it, and how well a model predicts it.

    Attributes:
        counts: rows that have the label, by subset.
        positives: of a class label, rows of class 1, by subset; None for a number.
        distribution: of a number; None for a class label.
        scores: on the test rows, the main one first. Empty if it cannot be measured there: all
            test rows are of one class, or none has the label.
        calibration_error: expected calibration error of the probability on the test rows, 15 bins;
            None for a number, or where no test row has the label.
    """

    counts: Counts
    positives: Counts | None = _without()
    distribution: Distribution | None = _without()
    scores: tuple[LabelScore, ...] = ()
    calibration_error: FiniteFloat | None = _without()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.positives is None) == (self.distribution is None):
            raise ValueError("expected `positives` of a class label, or `distribution` of a number")
        return self

    @property
    def share_of_ones(self) -> float | None:
        """Share of class 1 among the rows that have the label; None for a number."""
        return None if self.positives is None else self.positives.total / self.counts.total


class TaskMeaning(_Frozen):
    """What the labels of a task mean.

    Attributes:
        source, terms: see `TaskText`.
        counted: what has the labels.
        answered_by: the experts whose answers the scores are of: the defaults of the task.
        labels: in the order of `TaskInfo.labels`.
    """

    source: Line
    terms: Line
    counted: Counted
    answered_by: Literal["own", "forest", "both"] = "own"
    labels: tuple[LabelMeaning, ...] = Field(min_length=1)


def describe_label(label: str, index: int, meaning: TaskMeaning, unit: str = "") -> str:
    """Describe a label in some lines of text.

    Args:
        label: its name in answers.
        index: its position in the task.
        meaning: of the task.
        unit: of its number; empty for a class label.
    """
    own = meaning.labels[index]
    facts = {
        "direction": _DIRECTIONS[own.direction] + (f"; 1 = {own.one}" if own.one else ""),
        "unit": unit or ("probability" if own.positives is not None else "not stated"),
        "data": data_text(own, meaning.counted, unit),
        "test score": scores_text(own),
        "calibration error": calibration_text(own),
    }
    lines = [f"{label}: {own.name}", f"  {own.measured}"]
    return "\n".join([*lines, *(f"  {name}: {fact}" for name, fact in facts.items())])


def data_text(label: LabelMeaning, counted: str, unit: str = "") -> str:
    """Say how many rows have a label, and what its base rate or distribution is."""
    counts, spread = label.counts, label.distribution
    subsets = f"{counts.train} train, {counts.valid} validation, {counts.test} test"
    if spread is None:
        shared = f"{100 * (label.share_of_ones or 0):.3g} % are 1"
    else:
        decimals = max(0, 2 - math.floor(math.log10(spread.deviation or 1)))
        low, middle, high, mean = (
            f"{value:.{decimals}f}" for value in (*spread.quartiles, spread.mean)
        )
        middle_half = f"quartiles {low}, {middle}, {high}"
        shared = f"mean {mean}, standard deviation {spread.deviation:.3g}, {middle_half}"
        shared += f" {unit}".rstrip()
    return f"{counts.total} {counted} ({subsets}); {shared}"


def scores_text(label: LabelMeaning) -> str:
    """Say the test scores of a label with their intervals, or why there are none."""
    if not label.scores:
        none = "no test row has the label" if not label.counts.test else "all are of one class"
        return f"not measured: {none}"
    shown = [
        f"{METRIC_TITLES[score.metric]} {score.value:.3f} ({score.low:.3f} to {score.high:.3f})"
        + f" {score.unit}".rstrip()
        for score in label.scores
    ]
    return ", ".join(shown)


def calibration_text(label: LabelMeaning) -> str:
    """Say the calibration error of a label, or why there is none."""
    if label.calibration_error is not None:
        return f"{label.calibration_error:.3f}"
    return "not measured" if label.distribution is None else "none, it is a number"
