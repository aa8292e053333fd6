"""Tables of molecules with labels: what a user says of one, and its rows as they are read."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
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

from merging.data.columns import read_classes, read_numbers
from merging.data.labels import Label, normalised, read_label, why_no_label
from merging.data.split import named_parts, part_text
from models.data.tables import SAMPLE, column_called, molecule_column, open_stream, open_table
from models.errors import DataError, InvalidInputError
from models.names import check_labels
from models.task import LabelTarget, TaskInfo, Unit
from models.validation import one_of

_IGNORED = "mol_id"  # MoleculeNet's names of molecules
_SHOWN = 5


def _as_word(value: object) -> object:
    if isinstance(value, bool):
        made = f"{str(value).lower()}, which is what YAML makes of yes, no, on, off, true and false"
        raise ValueError(f"got {made}, expected the word in quotes")
    return str(value) if isinstance(value, int | float) else value


def _as_tuple(value: object) -> object:
    return value if isinstance(value, list | tuple) else (value,)


Word = Annotated[str, BeforeValidator(_as_word)]
"""A cell of a table; in YAML a number may stand without quotes."""
Words = Annotated[tuple[Word, ...], BeforeValidator(_as_tuple)]


class Folds(BaseModel):
    """Which folds of `split_column` are validated and tested on; all others are trained on.

    Attributes:
        valid: one fold or several; none takes a ninth of the training rows (see `split_column`).
        test: one fold or several.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    valid: Words = ()
    test: Annotated[Words, Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if both := sorted({*map(part_text, self.valid)} & {*map(part_text, self.test)}):
            raise ValueError(f"got fold {', '.join(both)} as valid and test, expected it once")
        return self


class DatasetSpec(BaseModel):
    """A table (CSV and its relatives, plain or gzip) of molecules and labels.

    Attributes:
        smiles_column: the column of the molecules; None chooses it by name and content.
        label_columns: the columns of the labels; None takes all others (but `mol_id` and
            `split_column`), each of which then must hold two classes. Of a regression and of
            several classes it must be said, unless there is only one other column.
        target: what is learnt: `multilabel` (two classes in each column), `regression` (numbers)
            or `multiclass` (one column of several classes).
        units: of a regression, the unit of all labels or by label. It is in every answer.
        classes: of `multiclass`, all classes by name in the order of the answers; None takes those
            that are there, numbers in their order, words by the alphabet.
        positive: which of a label's two words is class 1, for all labels or by label; needed where
            the words do not say it (`merging.data.labels`).
        split: `scaffold` (Bemis-Murcko, 0.8 / 0.1 / 0.1, without chance) or `random` (the same
            shares).
        split_seed: of the random split; a run's own seed has no influence on it.
        split_column: a column that says of each row whether it is train, valid or test, or, with
            `folds`, in which fold it is. Where it says nothing of validation, a ninth of the
            training rows is taken for it, as `split` says.
        folds: which folds of that column are which.
        max_dropped: the largest share of rows that may be left out because they cannot be read.
        file: path in the data folder; None for MoleculeNet's own names and, where they are not
            there, PyG's loader.
        num_molecules, num_labels: the published size; a file of another size is an error. None does
            not check.
        about: one line for people.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    smiles_column: str | None = None
    label_columns: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    target: LabelTarget = "multilabel"
    units: Unit | dict[str, Unit] | None = None
    classes: Annotated[tuple[Word, ...], Field(min_length=2)] | None = None
    positive: Word | dict[str, Word] | None = None
    split: Literal["scaffold", "random"] = "scaffold"
    split_seed: Annotated[int, Field(ge=0)] = 0
    split_column: str | None = None
    folds: Folds | None = None
    max_dropped: Annotated[float, Field(ge=0, le=1)] = 0.05
    file: str | None = None
    num_molecules: int | None = None
    num_labels: int | None = None
    about: str = ""

    @field_validator("label_columns")
    @classmethod
    def _distinct(cls, columns: tuple[str, ...] | None) -> tuple[str, ...] | None:
        check_labels(columns or ())
        return columns

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a target that is not said: sets from before there was one keep what was made."""
        values: dict[str, Any] = handler(self)
        for name in ("target", "units", "classes"):
            if values[name] == type(self).model_fields[name].default:
                del values[name]
        return values

    @model_validator(mode="after")
    def _check_target(self) -> Self:
        of_target = {"units": "regression", "classes": "multiclass", "positive": "multilabel"}
        for name, target in of_target.items():
            if getattr(self, name) is not None and self.target != target:
                got = f"got it for target {self.target!r}"
                raise ValueError(f"{name}: {got}, expected `target: {target}`")
        if self.target == "multiclass" and len(self.label_columns or ()) > 1:
            got = f"got {len(self.label_columns or ())} columns for target 'multiclass'"
            raise ValueError(f"label_columns: {got}, expected one (a task for each)")
        check_labels(map(normalised, self.classes or ()))
        return self

    @model_validator(mode="after")
    def _check(self) -> Self:
        labels = self.label_columns or ()
        if not all(name.strip() for name in labels):
            raise ValueError("label_columns: got an empty name, expected the names of columns")
        if taken := sorted({*labels} & {self.smiles_column, self.split_column}):
            names = ", ".join(map(str, taken))
            raise ValueError(f"label_columns: got {names}, which is said to be something else")
        if self.folds and self.split_column is None:
            raise ValueError("folds: got them without `split_column`, expected their column")
        return self

    def info(self, labels: Sequence[str]) -> TaskInfo:
        """What a task with these labels (of `multiclass`, classes) answers."""
        units = self.units or ""
        by_label = units if isinstance(units, dict) else dict.fromkeys(labels, units)
        return TaskInfo(
            labels=tuple(labels),
            description=self.about,
            target=self.target,
            units=tuple(by_label.get(label, "") for label in labels) if units else (),
        )


@dataclass(frozen=True)
class DroppedRow:
    """A row that is left out: the line in which it begins, its molecule as written, and why."""

    line: int
    molecule: str
    reason: str


@dataclass(frozen=True)
class MoleculeTable:
    """The rows of a table.

    Attributes:
        molecule_column: the column of the molecules.
        lines: in which the R rows begin.
        molecules: (R,) as they are written.
        labels: C columns, each with R values.
        missing: by spelling, how many cells of labels are missing values.
        parts: (R,) "train", "valid" or "test", where a column says it; else None.
        dropped: further rows, which cannot be taken.
    """

    molecule_column: str
    lines: tuple[int, ...]
    molecules: tuple[str, ...]
    labels: tuple[Label, ...]
    missing: Mapping[str, int]
    parts: tuple[str, ...] | None
    dropped: tuple[DroppedRow, ...]


def read_molecule_table(file: Path, spec: DatasetSpec) -> MoleculeTable:
    """Read a table and decide of every column what it is; no molecule is read yet.

    Raises:
        DataError: no table, a column that is not there or holds no labels, or a cell of
            `split_column` that names no part. The message names file, column, line and cell.
    """
    try:
        with open_stream(file) as stream:
            table = open_table(stream)
            columns, rows = table.columns, list(table.rows)
        good = [row for row in rows if row.problem is None]
        at = molecule_column(columns, good[:SAMPLE], spec.smiles_column)
        split_at = None if spec.split_column is None else _column(spec.split_column, columns)
        labels_at = [_column(name, columns) for name in spec.label_columns or ()]
    except (InvalidInputError, DataError) as error:
        raise DataError(f"{file}: {error}") from error
    if not good:
        first = f" that can be taken (line {rows[0].line}: {rows[0].problem})" if rows else ""
        found = f"got no row below the header{first}"
        raise DataError(f"{file}: {found}, expected molecules with labels")
    if at in labels_at:
        raise DataError(f"{file}: got {columns[at]!r} as label, expected it to hold the molecules")
    others = [k for k in range(len(columns)) if k not in (at, split_at) and columns[k] != _IGNORED]
    if not (labels_at or others):
        found = f"got no column of labels beside {', '.join(map(repr, columns))}"
        raise DataError(f"{file}: {found}, expected some (cells apart by comma, semicolon or tab)")
    cells = {k: [row.cells[k] for row in good] for k in range(len(columns))}
    lines = [row.line for row in good]
    dropped = [DroppedRow(row.line, row.cells[at], row.problem) for row in rows if row.problem]
    parts = None
    if split_at is not None:
        parts = _named_parts(file, spec, cells[split_at], lines)
    labels = _labels(file, spec, {k: (columns[k], cells[k]) for k in labels_at or others}, lines)
    return MoleculeTable(
        molecule_column=columns[at],
        lines=tuple(lines),
        molecules=tuple(cells[at]),
        labels=labels,
        missing=_missing([cells[k] for k in labels_at or others], labels),
        parts=parts,
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


def _named_parts(
    file: Path, spec: DatasetSpec, cells: Sequence[str], lines: Sequence[int]
) -> tuple[str, ...]:
    try:
        return tuple(named_parts(cells, lines, vars(spec.folds) if spec.folds else {}))
    except DataError as error:
        raise DataError(f"{file}, column {spec.split_column!r}: {error}") from error


def _labels(
    file: Path,
    spec: DatasetSpec,
    columns: Mapping[int, tuple[str, Sequence[str]]],
    lines: Sequence[int],
) -> tuple[Label, ...]:
    """The labels of the given columns, by position: name and cells.

    Raises:
        DataError: it names every column that holds none.
    """
    try:
        check_labels(name for name, _ in columns.values())
    except InvalidInputError as error:
        raise DataError(f"{file}: {error}") from error
    named = spec.label_columns is not None
    if spec.target != "multilabel" and not named and len(columns) > 1:
        names = ", ".join(repr(name) for name, _ in columns.values())
        remedy = f"name them, as in `label_columns: [{next(iter(columns.values()))[0]}]`"
        found = f"got columns {names} beside the molecules"
        raise DataError(f"{file}: {found}, expected to know which are labels: {remedy}")
    _check_units(file, spec, [name for name, _ in columns.values()])
    positive = _positive(file, spec, columns.values())
    read, problems = [], {}
    for k, (name, cells) in columns.items():
        try:
            reason = None if named else why_no_label(name, cells)
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
        return read_numbers(name, cells, lines)
    if spec.target == "multiclass":
        return read_classes(name, cells, lines, spec.classes or ())
    return read_label(name, cells, lines, positive)


def _check_units(file: Path, spec: DatasetSpec, names: Sequence[str]) -> None:
    """Raises DataError: a unit of a label that is none."""
    for name in spec.units if isinstance(spec.units, dict) else ():
        if name not in names:
            expected = one_of(name, names)
            raise DataError(f"{file}: units: got label {name!r}, expected {expected}")


def _positive(
    file: Path, spec: DatasetSpec, columns: Collection[tuple[str, Sequence[str]]]
) -> dict[str, str]:
    """By label the word that is class 1, where it is said; every word must be of some use."""
    names = [name for name, _ in columns]
    if isinstance(spec.positive, dict):
        if unknown := [name for name in spec.positive if name not in names]:
            expected = one_of(unknown[0], names)
            raise DataError(f"{file}: positive: got label {unknown[0]!r}, expected {expected}")
        return spec.positive
    if spec.positive is None:
        return {}
    said = normalised(spec.positive)
    found = {name: spec.positive for name, cells in columns if said in map(normalised, set(cells))}
    if not found:
        wrong = f"got {spec.positive!r}, which no label holds"
        raise DataError(f"{file}: positive: {wrong}, expected one of a label's two words")
    return found


def _no_labels(file: Path, problems: Sequence[str], labels: Sequence[str], named: bool) -> str:
    shown = "; ".join(problems[:_SHOWN])
    more = f"; and {len(problems) - _SHOWN} columns more" if len(problems) > _SHOWN else ""
    if named or not labels:
        return f"{file}, {shown}{more}"
    remedy = f"name the labels, as in `label_columns: [{', '.join(labels[:_SHOWN])}]`"
    expected = f"expected only labels beside the molecules: {remedy}"
    return f"{file}: got columns that are no labels ({shown}{more}), {expected}"
