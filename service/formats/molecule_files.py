"""Files of molecules, in and out: tables, lines of SMILES and SDF in, CSV and NDJSON out.

Every record of a file gets its row of the answer: one that cannot be read has an error in it.
Reading blocks, and takes no more memory than a few records.
"""

import contextlib
import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from gzip import GzipFile
from itertools import chain, islice
from pathlib import PurePath
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, Literal, cast

import orjson

from models.data.tables import (
    DAMAGED_GZIP,
    GZIP_MAGIC,
    SAMPLE,
    Encoding,
    Row,
    Table,
    TextLines,
    column_called,
    damaged_gzip,
    encoding_of,
    is_header,
    molecule_column,
    open_table,
    read_smiles_lines,
    unique_names,
)
from models.errors import InvalidInputError
from service.core.engine import EngineInfo
from service.core.pipeline import Result
from service.core.reading import Record, Unreadable
from service.formats.answers import item, written
from service.formats.sdf import HEADER_LINES, SdfRecord, field_names, is_counts, read_sdf

FileKind = Literal["csv", "tsv", "smi", "sdf"]
OutputKind = Literal["csv", "ndjson"]
MEDIA_TYPES: dict[OutputKind, str] = {
    "csv": "text/csv; charset=utf-8",
    "ndjson": "application/x-ndjson",
}
_KINDS: dict[str, FileKind] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".smi": "smi",
    ".smiles": "smi",
    ".cxsmiles": "smi",
    ".txt": "smi",
    ".sdf": "sdf",
    ".sd": "sdf",
    ".mol": "sdf",
}
_LINE_COLUMNS = ("smiles", "name")
_IN_MEMORY_BYTES = 1024**2


class FileTooLargeError(Exception):
    """A file is larger than it may be, once it is unpacked."""


@dataclass(frozen=True)
class FileFormat:
    """How to read a file.

    Attributes:
        kind: of the file.
        smiles_column: of a table; None chooses the column by its name and by what it holds.
        id_field: the column, or data field of an SDF, that holds the record's id; None: there is
            none.
    """

    kind: FileKind
    smiles_column: str | None = None
    id_field: str | None = None


def kind_of(name: str) -> FileKind:
    """By the file's name, without `.gz`. Raises InvalidInputError."""
    ending = PurePath(name.lower().removesuffix(".gz")).suffix
    if ending not in _KINDS:
        known = f"{', '.join(_KINDS)} (also with .gz), or `format`"
        raise InvalidInputError(f"got a file called {name[:80]!a}, expected an ending of {known}")
    return _KINDS[ending]


def unpacked(stream: BinaryIO, max_bytes: int) -> BinaryIO:
    """A file as it is, or if its first bytes are those of gzip, what is packed in it, as a file of
    its own in its place: the packed one is closed.

    Raises:
        FileTooLargeError: that is more than `max_bytes`; no more is read, in memory or on disk.
        InvalidInputError: it is damaged.
    """
    stream.seek(0)
    packed = stream.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    stream.seek(0)
    if not packed:
        return stream
    plain = cast("BinaryIO", SpooledTemporaryFile(_IN_MEMORY_BYTES))  # noqa: SIM115
    with contextlib.ExitStack() as unless_done:
        unless_done.callback(plain.close)
        try:
            with GzipFile(fileobj=stream, mode="rb") as source:
                while block := source.read(_IN_MEMORY_BYTES):
                    if plain.tell() + len(block) > max_bytes:
                        raise FileTooLargeError
                    plain.write(block)
        except DAMAGED_GZIP as error:
            raise damaged_gzip(error) from None
        unless_done.pop_all()
    stream.close()
    return plain


@dataclass(frozen=True)
class MoleculeFile:
    """A file that is being read, from its beginning.

    Attributes:
        columns: names of what a record has beside the molecule, as in the file; a record's `own`
            are their values, None where an SDF record does not have a field.
        records: one by one.
        encoding: of the text.
        smiles_column: the one that is read, by its name among `unique_names`; None for SDF.
        id_column: number of the column that holds the ids; None if none was asked for.
    """

    columns: tuple[str, ...]
    records: Iterator[Record]
    encoding: Encoding
    smiles_column: str | None
    id_column: int | None


def open_file(stream: BinaryIO, file_format: FileFormat) -> MoleculeFile:
    """Read a file.

    Raises:
        InvalidInputError: no header, no column of molecules, a column that is not there.
    """
    if file_format.kind == "sdf":
        return _open_sdf(stream, file_format)
    if file_format.kind == "smi":
        return _open_lines(stream, file_format)
    table = open_table(stream, "\t" if file_format.kind == "tsv" else None)
    if file_format.kind == "tsv" and len(table.columns) == 1:  # a CSV by another name
        table = open_table(stream)
    return _open_table(table, file_format)


def _open_table(table: Table, file_format: FileFormat) -> MoleculeFile:
    sample = list(islice(table.rows, SAMPLE))
    column = molecule_column(table.columns, sample, file_format.smiles_column)
    return MoleculeFile(
        table.columns,
        (_row_record(row, column) for row in chain(sample, table.rows)),
        table.encoding,
        unique_names(table.columns)[column],
        _id_column(file_format, table.columns),
    )


def _row_record(row: Row, column: int) -> Record:
    if row.problem is not None:
        return Record(Unreadable("invalid_row", f"line {row.line}: {row.problem}"), row.cells)
    return Record(row.cells[column], row.cells)


def _open_lines(stream: BinaryIO, file_format: FileFormat) -> MoleculeFile:
    """A SMILES and a name on each line; or a table, if the first line names columns; or an SDF, if
    it begins as one."""
    wanted = file_format.smiles_column
    try:
        table = open_table(stream)
        if is_header(table.columns) or (wanted is not None and wanted in table.columns):
            return _open_table(table, file_format)
        encoding = table.encoding
    except InvalidInputError:
        encoding = encoding_of(stream)  # an empty file
    beginning = islice(TextLines(stream, encoding), HEADER_LINES + 1)
    if any(is_counts(line) for line in beginning):
        return _open_sdf(stream, file_format)
    if wanted not in (None, "smiles"):
        raise InvalidInputError(
            f"got smiles_column {wanted!a} for lines of SMILES, expected it for tables only",
        )
    lines = read_smiles_lines(stream, encoding)
    records = (Record(smiles, (smiles, name)) for _, smiles, name in lines)
    id_column = _id_column(file_format, _LINE_COLUMNS)
    return MoleculeFile(_LINE_COLUMNS, records, encoding, "smiles", id_column)


def _open_sdf(stream: BinaryIO, file_format: FileFormat) -> MoleculeFile:
    if file_format.smiles_column is not None:
        shown = f"got smiles_column {file_format.smiles_column!a} for an SDF file"
        raise InvalidInputError(f"{shown}, expected it for tables only")
    encoding = encoding_of(stream)
    names = field_names(TextLines(stream, encoding))
    columns = ("name", *names)
    records = (_sdf_record(record, names) for record in read_sdf(TextLines(stream, encoding)))
    id_column = _id_column(file_format, columns)
    if file_format.id_field in names:  # a data field that is called `name` too
        id_column = 1 + names.index(file_format.id_field)
    return MoleculeFile(columns, records, encoding, None, id_column)


def _sdf_record(record: SdfRecord, names: Sequence[str]) -> Record:
    return Record(record.source, (record.name, *map(record.fields.get, names)))


def _id_column(file_format: FileFormat, columns: Sequence[str]) -> int | None:
    if file_format.id_field is None:
        return None
    try:
        return column_called(file_format.id_field, columns)
    except InvalidInputError as error:
        raise InvalidInputError(f"id_field: {error}") from None


# --- answers ---


@dataclass
class ResultWriter:
    """Makes the answer for a file, group by group.

    Attributes:
        output: its form. CSV has the record's id if there is one, the file's own columns, then
            canonical SMILES, error, and a column per label or class (`task.label`, of a number with
            its unit: `task.label [unit]`); NDJSON has items as of `/predict`, with the id and with
            the file's own columns as `row`, by names that differ.
        file: that is answered.
        info, tasks: of the model that answers.
        answered, failed: how many records have been written, and how many of them with an error.
    """

    output: OutputKind
    file: MoleculeFile
    info: EngineInfo
    tasks: tuple[str, ...]
    answered: int = 0
    failed: int = 0

    def __post_init__(self) -> None:
        self._names = unique_names(self.file.columns)

    def header(self) -> bytes:
        """What comes first."""
        if self.output == "ndjson":
            return b""
        ours = [column for task in self.tasks for column in _columns(task, self.info)]
        own = [*([] if self.file.id_column is None else ["id"]), *self.file.columns]
        return _csv([[*own, "gmerging_smiles", "gmerging_error", *ours]])

    def rows(self, answered: Sequence[tuple[Record, Result]]) -> bytes:
        """One row or line for each record."""
        if self.output == "csv":
            text = _csv(self._row(record, result) for record, result in answered)
        else:
            lines = enumerate(answered, self.answered)
            text = b"".join(self._line(k, record, result) for k, (record, result) in lines)
        self.answered += len(answered)
        self.failed += sum(isinstance(result, Unreadable) for _, result in answered)
        return text

    def _own_id(self, record: Record) -> list[object]:
        return [] if self.file.id_column is None else [record.own[self.file.id_column] or ""]

    def _row(self, record: Record, result: Result) -> list[object]:
        own = [*self._own_id(record), *record.own]
        if isinstance(result, Unreadable):
            labels = sum(len(self.info.labels[task]) for task in self.tasks)
            return [*own, "", f"{result.code}: {result.message}", *[""] * labels]
        values: list[object] = []
        for task in self.tasks:
            target = self.info.task_infos[task].target
            values += written(result.tasks[task].values, target)
        return [*own, result.smiles or "", "", *values]

    def _line(self, index: int, record: Record, result: Result) -> bytes:
        own = zip(self._names, record.own, strict=True)
        row = {name: value for name, value in own if value is not None}
        ids = dict(zip(("id",), self._own_id(record), strict=False))
        shown = item(index, result, self.info, self.tasks, False)
        return orjson.dumps({"index": index, **ids, **shown, "row": row}) + b"\n"


def _columns(task: str, info: EngineInfo) -> list[str]:
    """Heads of a task's columns."""
    units = info.task_infos[task].unit_of
    named = ((label, units.get(label)) for label in info.labels[task])
    return [f"{task}.{label}" + (f" [{unit}]" if unit else "") for label, unit in named]


def _csv(rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    quoting = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        # Which by itself quotes no line end but its own.
        returns = any(isinstance(cell, str) and "\r" in cell for cell in row)
        (quoting if returns else writer).writerow(row)
    return text.getvalue().encode("utf-8", "replace")
