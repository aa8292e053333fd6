"""Tables of labelled molecules: their description in a configuration, and reading their rows."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from merging.data.columns import logarithms, read_classes, read_numbers
from merging.data.labels import Label, normalise, read_label, reason_for_no_label
from merging.data.split import cell_text, named_subsets, read_seeds
from models.data.tables import SAMPLE, column_called, molecule_column, open_stream, open_table
from models.errors import DataError, InvalidInputError
from models.names import check_labels
from models.task import LabelTarget, Metric, Scale, TaskInfo, Unit, check_metric, check_scale
from models.validation import one_of

_IGNORED = "mol_id"  # MoleculeNet's names of molecules
_NEWER = ("label_names", "target", "units", "scale", "metric", "classes", "validation_seeds_column")
"""Fields that were added later, whose defaults are left out of keys of results."""
_SHOWN = 5


def _as_word(value: object) -> object:
    if isinstance(value, bool):
        got = f"{str(value).lower()}, which is what YAML makes of yes, no, on, off, true and false"
        raise ValueError(f"got {got}, expected the word in quotes")
    return str(value) if isinstance(value, int | float) else value


def _as_tuple(value: object) -> object:
    return value if isinstance(value, list | tuple) else (value,)


Word = Annotated[str, BeforeValidator(_as_word)]
"""A cell of a table; in YAML a number needs no quotes."""
Words = Annotated[tuple[Word, ...], BeforeValidator(_as_tuple)]


class Folds(BaseModel):
    """The folds of `split_column` that form the validation and test subsets; all others form the
    training subset.

    Attributes:
        valid: one fold or several; none takes a ninth of the training rows.
        test: one fold or several.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    valid: Words = ()
    test: Annotated[Words, Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if both := sorted({*map(cell_text, self.valid)} & {*map(cell_text, self.test)}):
            raise ValueError(f"got fold {', '.join(both)} as valid and test, expected it once")
        return self


class DatasetSpec(BaseModel):
    """The description of a table (CSV, TSV or similar, plain or gzip) of molecules and labels.

    Attributes:
        smiles_column: the column of the molecules; None chooses it by name and content.
        label_columns: the columns of the labels; None takes all others except `mol_id` and those
            that say the split. Required for `regression` and `multiclass` if there are several
            others.
        label_names: names of the labels in answers, one for each of `label_columns`; None takes the
            names of the columns.
        target: `multilabel` (columns of two classes), `regression` (columns of numbers) or
            `multiclass` (one column of several classes).
        units: for `regression`, the unit of all labels, or by label; answers contain it.
        scale: for `regression`, `log10` learns the decimal logarithms of the numbers, which must be
            positive; answers are the numbers. For quantities over several orders of magnitude.
        metric: the metric by which the task is judged: it selects epochs and options, and is the
            one in tables (`models.task.METRICS`); None for the default of the target.
        classes: for `multiclass`, the names of all classes in the order of the answers; None takes
            the classes that occur, numbers in ascending order before words in alphabetical order.
        positive: the word of class 1, for all labels or by label; required for words that
            `merging.data.labels` does not know.
        split: `scaffold` (Bemis-Murcko, 0.8 / 0.1 / 0.1, deterministic) or `random` (same shares).
        split_seed: seed of the random split, independent of the seed of a run.
        split_column: the column that has the subset of every row, or with `folds` its fold. If no
            row is for validation, a ninth of the training rows is, drawn by the method of `split`.
        folds: the folds of `split_column` that form the validation and test subsets.
        validation_seeds_column: the column that has for every training row the seeds of runs in
            which it is for validation, every digit a seed. A run must have one of these seeds.
        max_dropped: the largest share of rows that may be unreadable.
        file: path in the data folder; None for a MoleculeNet data set, which may be downloaded.
        num_molecules, num_labels: the published size, which the file must have; None for any.
        about: a one-line description of the task.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    smiles_column: str | None = None
    label_columns: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    label_names: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    target: LabelTarget = "multilabel"
    units: Unit | dict[str, Unit] | None = None
    scale: Scale = "linear"
    metric: Metric | None = None
    classes: Annotated[tuple[Word, ...], Field(min_length=2)] | None = None
    positive: Word | dict[str, Word] | None = None
    split: Literal["scaffold", "random"] = "scaffold"
    split_seed: Annotated[int, Field(ge=0)] = 0
    split_column: str | None = None
    folds: Folds | None = None
    validation_seeds_column: str | None = None
    max_dropped: Annotated[float, Field(ge=0, le=1)] = 0.05
    file: str | None = None
    num_molecules: int | None = None
    num_labels: int | None = None
    about: str = ""

    @field_validator("label_columns", "label_names")
    @classmethod
    def _distinct(cls, columns: tuple[str, ...] | None) -> tuple[str, ...] | None:
        check_labels(columns or ())
        return columns

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out defaults of the newer fields, so that older cached results keep their keys."""
        values: dict[str, Any] = handler(self)
        for name in _NEWER:
            if values[name] == type(self).model_fields[name].default:
                del values[name]
        return values

    @model_validator(mode="after")
    def _check_target(self) -> Self:
        of_target = {"units": "regression", "classes": "multiclass", "positive": "multilabel"}
        for name, target in of_target.items():
            if getattr(self, name) is not None and self.target != target:
                raise ValueError(
                    f"{name}: got it for target {self.target!r}, expected `target: {target}`"
                )
        if self.target == "multiclass" and len(self.label_columns or ()) > 1:
            got = f"got {len(self.label_columns or ())} columns for target 'multiclass'"
            raise ValueError(f"label_columns: {got}, expected one (a task for each)")
        check_labels(map(normalise, self.classes or ()))
        check_scale(self.scale, self.target)
        check_metric(self.metric, self.target)
        return self

    @model_validator(mode="after")
    def _check(self) -> Self:
        labels = self.label_columns or ()
        if not all(name.strip() for name in labels):
            raise ValueError("label_columns: got an empty name, expected the names of columns")
        others = {self.smiles_column, self.split_column, self.validation_seeds_column}
        if taken := sorted({*labels} & others):
            names = ", ".join(map(str, taken))
            raise ValueError(f"label_columns: got {names}, which is said to be something else")
        if self.folds and self.split_column is None:
            raise ValueError("folds: got them without `split_column`, expected their column")
        if self.validation_seeds_column is not None and self.split_column is None:
            got = "validation_seeds_column: got it without `split_column`"
            raise ValueError(f"{got}, expected the column of training and test rows")
        return self

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names, columns = self.label_names, self.label_columns or ()
        if names is None:
            return self
        if len(names) != len(columns):
            got = f"label_names: got {len(names)} for {len(columns)} `label_columns`"
            raise ValueError(f"{got}, expected one for each")
        if self.target == "multiclass":
            raise ValueError("label_names: got some for target 'multiclass', expected `classes`")
        for option in ("units", "positive"):
            if isinstance(getattr(self, option), dict):
                got = f"{option}: got them by label beside `label_names`"
                raise ValueError(f"{got}, expected one value for all labels")
        return self

    def info(self, labels: Sequence[str]) -> TaskInfo:
        """Return the `TaskInfo` of a task with these labels (of `multiclass`, classes)."""
        units = self.units or ""
        by_label = units if isinstance(units, dict) else dict.fromkeys(labels, units)
        return TaskInfo(
            labels=tuple(labels),
            description=self.about,
            target=self.target,
            units=tuple(by_label.get(label, "") for label in labels) if units else (),
            scale=self.scale,
            metric=self.metric,
        )


@dataclass(frozen=True)
class DroppedRow:
    """A row that is left out: the line at which it begins, its molecule as written, the reason."""

    line: int
    molecule: str
    reason: str


@dataclass(frozen=True)
class MoleculeTable:
    """The rows of a table.

    Attributes:
        molecule_column: name of the column of the molecules.
        lines: the line of the file at which every one of the R rows begins.
        molecules: R molecules as written.
        labels: the label columns, with R values.
        missing: number of label cells by spelling of a missing value.
        subsets: "train", "valid" or "test" of every row; None without `split_column`.
        seeds: by row the seeds in whose validation subset it is; None without
            `validation_seeds_column`.
        dropped: malformed rows, not among the R.
    """

    molecule_column: str
    lines: tuple[int, ...]
    molecules: tuple[str, ...]
    labels: tuple[Label, ...]
    missing: Mapping[str, int]
    subsets: tuple[str, ...] | None
    seeds: tuple[frozenset[int], ...] | None
    dropped: tuple[DroppedRow, ...]


def read_molecule_table(file: Path, spec: DatasetSpec) -> MoleculeTable:
    """Read a table and its labels; molecules are not parsed.

    Raises:
        DataError: the file is not a table, a column does not exist or does not hold labels, or a
            cell of `split_column` names no subset. The message names file, column, line and cell.
    """
    try:
        with open_stream(file) as stream:
            table = open_table(stream)
            columns, rows = table.columns, list(table.rows)
        good = [row for row in rows if row.problem is None]
        at = molecule_column(columns, good[:SAMPLE], spec.smiles_column)
        split_at, seeds_at = (
            None if name is None else _column(name, columns)
            for name in (spec.split_column, spec.validation_seeds_column)
        )
        labels_at = [_column(name, columns) for name in spec.label_columns or ()]
    except (InvalidInputError, DataError) as error:
        raise DataError(f"{file}: {error}") from error
    if not good:
        first = f" that can be taken (line {rows[0].line}: {rows[0].problem})" if rows else ""
        raise DataError(
            f"{file}: got no row below the header{first}, expected molecules with labels"
        )
    if at in labels_at:
        raise DataError(f"{file}: got {columns[at]!r} as label, expected it to hold the molecules")
    said = at, split_at, seeds_at
    others = [k for k in range(len(columns)) if k not in said and columns[k] != _IGNORED]
    if not (labels_at or others):
        got = f"got no column of labels beside {', '.join(map(repr, columns))}"
        raise DataError(f"{file}: {got}, expected some (cells apart by comma, semicolon or tab)")
    cells = {k: [row.cells[k] for row in good] for k in range(len(columns))}
    lines = [row.line for row in good]
    dropped = [DroppedRow(row.line, row.cells[at], row.problem) for row in rows if row.problem]
    subsets = seeds = None
    if split_at is not None:
        subsets = _named_subsets(file, spec, cells[split_at], lines)
    if subsets is not None and seeds_at is not None:
        seeds = _seeds(file, spec, cells[seeds_at], lines, subsets)
    labels = _labels(file, spec, {k: (columns[k], cells[k]) for k in labels_at or others}, lines)
    if spec.label_names is not None:
        pairs = zip(labels, spec.label_names, strict=True)
        labels = tuple(replace(label, name=name) for label, name in pairs)
    return MoleculeTable(
        molecule_column=columns[at],
        lines=tuple(lines),
        molecules=tuple(cells[at]),
        labels=labels,
        missing=_missing([cells[k] for k in labels_at or others], labels),
        subsets=subsets,
        seeds=seeds,
        dropped=tuple(dropped),
    )


def _missing(columns: Sequence[Sequence[str]], labels: Sequence[Label]) -> dict[str, int]:
    """By spelling, how many cells of some labels are missing values; the most frequent first."""
    counts: Counter[str] = Counter()
    for cells, label in zip(columns, labels, strict=True):
        pairs = zip(cells, label.values, strict=True)
        counts.update(cell.strip() for cell, value in pairs if math.isnan(value))
    return dict(counts.most_common())


def _column(name: str, columns: Sequence[str]) -> int:
    at = column_called(name, columns)
    if columns.count(name) > 1:
        raise DataError(f"got {columns.count(name)} columns of the name {name!r}, expected one")
    return at


def _named_subsets(
    file: Path, spec: DatasetSpec, cells: Sequence[str], lines: Sequence[int]
) -> tuple[str, ...]:
    try:
        return tuple(named_subsets(cells, lines, vars(spec.folds) if spec.folds else {}))
    except DataError as error:
        raise DataError(f"{file}, column {spec.split_column!r}: {error}") from error


def _seeds(
    file: Path,
    spec: DatasetSpec,
    cells: Sequence[str],
    lines: Sequence[int],
    subsets: Sequence[str],
) -> tuple[frozenset[int], ...]:
    try:
        return tuple(read_seeds(cells, lines, subsets))
    except DataError as error:
        raise DataError(f"{file}, column {spec.validation_seeds_column!r}: {error}") from error


def _labels(
    file: Path,
    spec: DatasetSpec,
    columns: Mapping[int, tuple[str, Sequence[str]]],
    lines: Sequence[int],
) -> tuple[Label, ...]:
    """Read the labels of the given columns (name and cells, by position).

    Raises:
        DataError: some columns hold no labels; the message names all of them.
    """
    try:
        check_labels(name for name, _ in columns.values())
    except InvalidInputError as error:
        raise DataError(f"{file}: {error}") from error
    named = spec.label_columns is not None
    if spec.target != "multilabel" and not named and len(columns) > 1:
        names = ", ".join(repr(name) for name, _ in columns.values())
        remedy = f"name them, as in `label_columns: [{next(iter(columns.values()))[0]}]`"
        got = f"got columns {names} beside the molecules"
        raise DataError(f"{file}: {got}, expected to know which are labels: {remedy}")
    for option in ("units", "positive"):
        _check_keys(file, option, getattr(spec, option), [name for name, _ in columns.values()])
    positive = _positive(file, spec, columns.values())
    read, problems = [], {}
    for k, (name, cells) in columns.items():
        try:
            reason = None if named else reason_for_no_label(name, cells)
            if reason:
                raise DataError(reason)
            read.append(_read(spec, name, cells, lines, positive.get(name)))
        except DataError as error:
            problems[k] = f"column {name!r}" + ("" if name else f" (number {k + 1})") + f": {error}"
    if problems:
        labels = [label.name for label in read]
        raise DataError(_no_labels(file, list(problems.values()), labels, named))
    return tuple(read)


def _read(
    spec: DatasetSpec, name: str, cells: Sequence[str], lines: Sequence[int], positive: str | None
) -> Label:
    if spec.target == "regression":
        label = read_numbers(name, cells, lines)
        return logarithms(label, lines) if spec.scale == "log10" else label
    if spec.target == "multiclass":
        return read_classes(name, cells, lines, spec.classes or ())
    return read_label(name, cells, lines, positive)


def _check_keys(file: Path, option: str, values: object, labels: Sequence[str]) -> None:
    """Raise DataError if an option is given by label for a label that does not exist."""
    for name in values if isinstance(values, dict) else ():
        if name not in labels:
            raise DataError(
                f"{file}: {option}: got label {name!r}, expected {one_of(name, labels)}"
            )


def _positive(
    file: Path, spec: DatasetSpec, columns: Collection[tuple[str, Sequence[str]]]
) -> dict[str, str]:
    """Return the word of class 1 by label; one word for all labels must occur in some of them."""
    word = spec.positive
    if word is None or isinstance(word, dict):
        return word or {}
    key = normalise(word)
    words = {name: word for name, cells in columns if key in map(normalise, set(cells))}
    if not words:
        got = f"got {word!r}, which no label holds"
        raise DataError(f"{file}: positive: {got}, expected one of a label's two words")
    return words


def _no_labels(file: Path, problems: Sequence[str], labels: Sequence[str], named: bool) -> str:
    shown = "; ".join(problems[:_SHOWN])
    more = f"; and {len(problems) - _SHOWN} columns more" if len(problems) > _SHOWN else ""
    if named or not labels:
        return f"{file}, {shown}{more}"
    remedy = f"name the labels, as in `label_columns: [{', '.join(labels[:_SHOWN])}]`"
    expected = f"expected only labels beside the molecules: {remedy}"
    return f"{file}: got columns that are no labels ({shown}{more}), {expected}"
