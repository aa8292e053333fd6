"""Descriptions of tasks: labels, prediction level, target and units."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from torch import Tensor

from models.errors import InvalidInputError, UnknownTaskError
from models.meaning import TaskMeaning, describe_label
from models.names import check_labels

Level = Literal["graph", "node", "pair"]
"""What has an answer: a graph, each of its nodes, or each of some pairs of its nodes."""
Target = Literal["multilabel", "multiclass", "regression", "energy_and_forces"]
"""`multilabel`: an independent probability per label. `multiclass`: probabilities of classes, which
sum to 1. `regression`: real numbers. `energy_and_forces`: the energy of a structure (eV) and the
force on every atom, its negative gradient (eV / Angstrom)."""
LabelTarget = Literal["multilabel", "multiclass", "regression"]
"""Targets with one number or class per label and graph or node, so that labels form a table."""
OutputKind = Literal[Target, "log10_regression"]
"""What the outputs of a head are: those of a target, or the decimal logarithms of the numbers of a
regression."""
Scale = Literal["linear", "log10"]
"""What a regression learns: the numbers, or their decimal logarithms."""
Metric = Literal["roc_auc", "auprc", "accuracy", "mae", "spearman", "forces"]
METRICS: dict[Target, tuple[Metric, ...]] = {
    "multilabel": ("roc_auc", "auprc"),
    "multiclass": ("accuracy",),
    "regression": ("mae", "spearman"),
    "energy_and_forces": ("forces",),
}
"""The metrics by which tasks of a target may be judged, the default first. Link prediction is a
binary label: ROC-AUC of pairs."""
_MOST_LOG10 = 37.0  # 1e37 and 1e-37 are normal numbers of float32

_LONGEST_UNIT = 64  # characters


def _check_unit(unit: str) -> str:
    if len(unit) > _LONGEST_UNIT or not unit.isprintable() or unit != unit.strip():
        expected = f"expected at most {_LONGEST_UNIT} printable characters, no space around them"
        raise ValueError(f"got unit {unit[:_LONGEST_UNIT]!a}, {expected}")
    return unit


Unit = Annotated[str, AfterValidator(_check_unit)]
"""Unit of a number, such as `log mol/L`; empty if it is not known."""


def check_units(units: Sequence[str], labels: Sequence[str], target: Target) -> None:
    """Raise InvalidInputError if units are given for a target other than regression, or their
    number is not that of the labels. No units are always valid."""
    if units and target != "regression":
        raise InvalidInputError(f"units: got some for target {target!r}, expected a regression")
    if units and len(units) != len(labels):
        counts = f"{len(units)} for {len(labels)} labels"
        raise InvalidInputError(f"units: got {counts}, expected one for each, or none at all")


def check_scale(scale: Scale, target: Target) -> None:
    """Raise InvalidInputError if a scale other than `linear` is given for a target other than
    regression."""
    if scale != "linear" and target != "regression":
        raise InvalidInputError(
            f"scale: got {scale!r} for target {target!r}, expected a regression"
        )


def check_metric(metric: Metric | None, target: Target) -> None:
    """Raise InvalidInputError if a metric is not one of those of a target."""
    if metric is not None and metric not in METRICS[target]:
        expected = f"expected {' or '.join(METRICS[target])}"
        raise InvalidInputError(f"metric: got {metric!r} for target {target!r}, {expected}")


class TaskInfo(BaseModel):
    """Description of a task; travels in the artifact's manifest.

    Attributes:
        labels: names of the predicted labels or classes, in the order of the head's outputs.
        description: one line of text.
        level: whether graphs, their nodes or pairs of their nodes have predictions.
        target: kind of prediction.
        units: for regression, one unit per label; empty if no unit is known.
        scale: for regression, `log10` if the head's outputs are logarithms of the numbers; answers
            are the numbers themselves.
        metric: the metric by which the task is judged; None for the default of the target.
        meaning: what the labels mean and how well they are predicted; None if nobody said so.
        head_dim: of a task on pairs, width of the head: the label's logit is the dot product of its
            outputs at both nodes (`models.data.batch.pair_scores`). None at other levels, whose
            head has an output for each label.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: tuple[str, ...] = Field(min_length=1)
    description: str = ""
    level: Level = "graph"
    target: Target = "multilabel"
    units: tuple[Unit, ...] = ()
    scale: Scale = "linear"
    metric: Metric | None = None
    meaning: TaskMeaning | None = None
    head_dim: Annotated[int, Field(ge=1)] | None = None

    @property
    def output_kind(self) -> OutputKind:
        """What the outputs of the task's head are."""
        return "log10_regression" if self.scale == "log10" else self.target

    @property
    def main_metric(self) -> Metric:
        """The metric by which the task is judged."""
        return self.metric or METRICS[self.target][0]

    @property
    def unit_of(self) -> dict[str, str]:
        """Units by label, for labels with a known unit."""
        return {label: unit for label, unit in zip(self.labels, self.units, strict=False) if unit}

    def unit(self, label: str) -> str:
        """Return the unit of a label's numbers; empty if there is none, or it is not known."""
        return "eV" if self.target == "energy_and_forces" else self.unit_of.get(label, "")

    def label_text(self, label: str) -> str:
        """Describe a label in some lines of text; its name and unit alone where nobody said more.
        Raises InvalidInputError: the task does not have the label."""
        if label not in self.labels:
            expected = f"expected one of {', '.join(self.labels[:8])}"
            raise InvalidInputError(f"got label {label!a}, {expected}")
        unit = self.unit(label)
        if self.meaning is None:
            return f"{label} [{unit}]" if unit else label
        return describe_label(label, self.labels.index(label), self.meaning, unit)

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out defaults of newer fields, so that versions without them can read the
        manifest."""
        values: dict[str, Any] = handler(self)
        for name in ("units", "scale", "metric", "meaning", "head_dim"):
            if getattr(self, name) == type(self).model_fields[name].default:
                values.pop(name, None)
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_labels(self.labels)
        check_units(self.units, self.labels, self.target)
        check_scale(self.scale, self.target)
        check_metric(self.metric, self.target)
        self._check_pairs()
        if self.meaning is not None and len(self.meaning.labels) != len(self.labels):
            counts = f"{len(self.meaning.labels)} labels for {len(self.labels)}"
            raise ValueError(f"meaning: got {counts}, expected one for each")
        if self.target == "energy_and_forces" and (
            self.level != "graph" or self.labels != ("energy",)
        ):
            raise ValueError(
                f"got labels {self.labels} at level {self.level!r}, expected ('energy',) at level"
                " 'graph' for energy_and_forces"
            )
        return self

    def _check_pairs(self) -> None:
        if (self.level == "pair") != (self.head_dim is not None):
            got = f"got head_dim {self.head_dim} at level {self.level!r}"
            raise ValueError(f"{got}, expected one at level 'pair' and none at other levels")
        if self.level == "pair" and (self.target != "multilabel" or len(self.labels) != 1):
            got = f"got target {self.target!r} and {len(self.labels)} labels at level 'pair'"
            raise ValueError(f"{got}, expected 'multilabel' and one label")


def answers(logits: Tensor, kind: OutputKind) -> Tensor:
    """Convert outputs of a head to predictions, (*, C) -> (*, C): sigmoid for multilabel, softmax
    over C for multiclass, 10^x for logarithms, identity for other kinds. Logarithms beyond 37 are
    cut, so that the numbers are finite."""
    if kind == "multilabel":
        return logits.sigmoid()
    if kind == "log10_regression":
        return 10 ** logits.clamp(-_MOST_LOG10, _MOST_LOG10)
    return logits.softmax(-1) if kind == "multiclass" else logits


def select_tasks(
    known: tuple[str, ...], tasks: Sequence[str] | None
) -> tuple[tuple[str, ...], list[int]]:
    """Select tasks by name.

    Args:
        known: names of all tasks.
        tasks: names of the requested tasks; None for all.

    Returns:
        The requested names in their order, and their positions in `known`.

    Raises:
        UnknownTaskError: a name is not in `known`.
        InvalidInputError: no task is requested.
    """
    names = known if tasks is None else tuple(tasks)
    if not names:
        raise InvalidInputError("got no task, expected at least one")
    if unknown := [task for task in names if task not in known]:
        raise UnknownTaskError(f"got task {unknown[0]!r}, expected one of {', '.join(known)}")
    return names, [known.index(task) for task in names]
