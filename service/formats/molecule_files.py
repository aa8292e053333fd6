"""Files of molecules: reads tables, lines of SMILES and SDF; writes predictions as CSV and NDJSON.

Every record of a file has a row in the output; unreadable records have an error there. Reading
blocks, and holds a few records in memory.
"""

import contextlib
import csv
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from gzip import GzipFile
from itertools import chain, islice, zip_longest
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, Literal, cast

import numpy as np
import orjson
from numpy.typing import NDArray

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
from service.core.answer import Answer, Result
from service.core.engine import EngineInfo
from service.core.explaining import NOTHING, Explained
from service.core.reading import ItemFailure, Record
from service.formats.answers import item, number_columns, number_table
from service.formats.explanation_columns import (
    ALERTS,
    alert_cells,
    percentile_columns,
    percentile_table,
)
from service.formats.kinds import FileKind
from service.formats.sdf import HEADER_LINES, SdfRecord, field_names, is_counts, read_sdf

OutputKind = Literal["csv", "ndjson", "sdf"]
MEDIA_TYPES: dict[OutputKind, str] = {
    "csv": "text/csv; charset=utf-8",
    "ndjson": "application/x-ndjson",
    "sdf": "chemical/x-mdl-sdfile",
}
_LINE_COLUMNS = ("smiles", "name")
_IN_MEMORY_BYTES = 1024**2


class FileTooLargeError(Exception):
    """A file is larger than the limit once it is decompressed."""


@dataclass(frozen=True)
class FileFormat:
    """How to read a file.

    Attributes:
        kind: kind of the file.
        smiles_column: column of the molecules in a table; None detects it by name and content.
        id_field: column, or data field of an SDF, of the record ids; None if there are none.
    """

    kind: FileKind
    smiles_column: str | None = None
    id_field: str | None = None


def decompressed(stream: BinaryIO, max_bytes: int) -> BinaryIO:
    """Return the file itself, or the content of a gzip file as a new file.

    Args:
        stream: the file; closed if it is gzip.
        max_bytes: largest decompressed size.

    Raises:
        FileTooLargeError: the content is larger; no more than `max_bytes` of it was kept.
        InvalidInputError: the gzip file is damaged.
    """
    stream.seek(0)
    packed = stream.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    stream.seek(0)
    if not packed:
        return stream
    plain = cast("BinaryIO", SpooledTemporaryFile(_IN_MEMORY_BYTES))  # noqa: SIM115
    with contextlib.ExitStack() as on_error:
        on_error.callback(plain.close)
        try:
            with GzipFile(fileobj=stream, mode="rb") as source:
                while block := source.read(_IN_MEMORY_BYTES):
                    if plain.tell() + len(block) > max_bytes:
                        raise FileTooLargeError
                    plain.write(block)
        except DAMAGED_GZIP as error:
            raise damaged_gzip(error) from None
        on_error.pop_all()
    stream.close()
    return plain


@dataclass(frozen=True)
class MoleculeFile:
    """An open file of molecules.

    Attributes:
        columns: names of the columns as in the file; `Record.passthrough` holds their values, None
            where an SDF record lacks a field.
        records: the records, read one by one.
        encoding: encoding of the text.
        smiles_column: name of the molecules' column, as `unique_names` writes it; None for SDF.
        id_column: index of the column of ids; None if `FileFormat.id_field` is None.
        types: types of the columns as of Arrow; None if all are text.
    """

    columns: tuple[str, ...]
    records: Iterator[Record]
    encoding: Encoding
    smiles_column: str | None
    id_column: int | None
    types: tuple[Any, ...] | None = None


def open_file(stream: BinaryIO, file_format: FileFormat) -> MoleculeFile:
    """Open a file of molecules at its beginning.

    Raises:
        InvalidInputError: there is no header, no column of molecules, or not the named column.
    """
    if file_format.kind == "sdf":
        return _open_sdf(stream, file_format)
    if file_format.kind == "smi":
        return _open_lines(stream, file_format)
    table = open_table(stream, "\t" if file_format.kind == "tsv" else None)
    if file_format.kind == "tsv" and len(table.columns) == 1:  # other delimiters
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
        id_column(file_format.id_field, table.columns),
    )


def _row_record(row: Row, column: int) -> Record:
    if row.problem is not None:
        return Record(ItemFailure("invalid_row", f"line {row.line}: {row.problem}"), row.cells)
    return Record(row.cells[column], row.cells)


def _open_lines(stream: BinaryIO, file_format: FileFormat) -> MoleculeFile:
    """Open a file of lines, each a SMILES and a name.

    The file is read as a table if its first line has column names, and as an SDF if it begins like
    one.
    """
    column = file_format.smiles_column
    try:
        table = open_table(stream)
        if is_header(table.columns) or (column is not None and column in table.columns):
            return _open_table(table, file_format)
        encoding = table.encoding
    except InvalidInputError:
        encoding = encoding_of(stream)  # the file is empty
    beginning = islice(TextLines(stream, encoding), HEADER_LINES + 1)
    if any(is_counts(line) for line in beginning):
        return _open_sdf(stream, file_format)
    if column not in (None, "smiles"):
        got = f"got smiles_column {column!a} for lines of SMILES"
        raise InvalidInputError(f"{got}, expected it for tables only")
    lines = read_smiles_lines(stream, encoding)
    records = (Record(smiles, (smiles, name)) for _, smiles, name in lines)
    ids = id_column(file_format.id_field, _LINE_COLUMNS)
    return MoleculeFile(_LINE_COLUMNS, records, encoding, "smiles", ids)


def _open_sdf(stream: BinaryIO, file_format: FileFormat) -> MoleculeFile:
    if file_format.smiles_column is not None:
        got = f"got smiles_column {file_format.smiles_column!a} for an SDF file"
        raise InvalidInputError(f"{got}, expected it for tables only")
    encoding = encoding_of(stream)
    names = field_names(TextLines(stream, encoding))
    columns = ("name", *names)
    records = (_sdf_record(record, names) for record in read_sdf(TextLines(stream, encoding)))
    ids = id_column(file_format.id_field, columns)
    if file_format.id_field in names:  # and not the title, which is called `name`
        ids = 1 + names.index(file_format.id_field)
    return MoleculeFile(columns, records, encoding, None, ids)


def _sdf_record(record: SdfRecord, names: Sequence[str]) -> Record:
    return Record(record.source, (record.name, *map(record.fields.get, names)))


def id_column(id_field: str | None, columns: Sequence[str]) -> int | None:
    """Return the index of the column of ids; None if none is asked for. Raises
    InvalidInputError."""
    if id_field is None:
        return None
    try:
        return column_called(id_field, columns)
    except InvalidInputError as error:
        raise InvalidInputError(f"id_field: {error}") from None


@dataclass
class ResultWriter:
    """Writes the predictions for a file as CSV or NDJSON, group by group of records.

    Attributes:
        output: output format. CSV has the record's id if there is one, the columns of the file, the
            canonical SMILES, the error, and a column per label or class (`task.label`, or
            `task.label [unit]`). NDJSON has the items of `/predict` with the id, and the columns of
            the file as `row`, under unique names.
        file: the input file.
        info: description of the model.
        tasks: tasks to write, in order.
        escape_formulas: whether CSV has an apostrophe before text that a spreadsheet would run as a
            formula (`escaped`); otherwise cells come back as they are.
        explained: explanations of the rows. CSV has, after the labels, a column of percentiles for
            each, and a column `gmerging_alerts`.
        answered: number of records written so far.
        failed: number of records written with an error.
    """

    output: Literal["csv", "ndjson"]
    file: MoleculeFile
    info: EngineInfo
    tasks: tuple[str, ...]
    explained: Explained = NOTHING
    escape_formulas: bool = False
    answered: int = 0
    failed: int = 0

    def __post_init__(self) -> None:
        self._names = unique_names(self.file.columns)

    def header(self) -> bytes:
        """Return the header line; empty for NDJSON."""
        if self.output == "ndjson":
            return b""
        ids = [] if self.file.id_column is None else ["id"]
        ours = ["gmerging_smiles", "gmerging_error", *self._number_names()]
        alerts = [ALERTS] if "alerts" in self.explained.names else []
        header = [*ids, *self.file.columns, *ours, *alerts]
        return _encoded(_csv_line(self._cells(header)))

    def _cells(self, cells: Sequence[object]) -> Sequence[object]:
        return list(map(escaped, cells)) if self.escape_formulas else cells

    def rows(self, answered: Sequence[tuple[Record, Result]]) -> bytes:
        """Return one row or line per record."""
        if self.output == "csv":
            text = self._csv_rows(answered)
        else:
            lines = enumerate(answered, self.answered)
            text = b"".join(self._line(k, record, result) for k, (record, result) in lines)
        self.answered += len(answered)
        self.failed += sum(isinstance(result, ItemFailure) for _, result in answered)
        return text

    def _id(self, record: Record) -> list[object]:
        if self.file.id_column is None:
            return []
        value = record.passthrough[self.file.id_column]
        return ["" if value is None else value]

    def _number_names(self) -> list[str]:
        return [*number_columns(self.info, self.tasks), *percentile_columns(self.explained)]

    def _numbers(self, answers: Sequence[Answer]) -> NDArray[np.float64]:
        if not answers:
            return np.empty((0, 0))
        table = number_table(answers, self.info, self.tasks)
        return np.concatenate([table, percentile_table(answers, self.explained)], axis=1)

    def _csv_rows(self, answered: Sequence[tuple[Record, Result]]) -> bytes:
        good = [result for _, result in answered if isinstance(result, Answer)]
        table = self._numbers(good)
        with_alerts = "alerts" in self.explained.names
        alerts = [[cell] for cell in alert_cells(good)] if with_alerts else [[]] * len(good)
        ours = zip(table, _number_cells(table), alerts, strict=True)
        no_numbers = "," * (len(self._number_names()) - 1)
        nothing = np.full(len(no_numbers) + 1, np.nan), no_numbers, [""] * with_alerts
        lines = []
        for record, result in answered:
            cells = [*self._id(record), *record.passthrough]
            if isinstance(result, ItemFailure):
                values, shown, last = nothing
                cells += ["", f"{result.code}: {result.message}"]
            else:
                values, shown, last = next(ours)
                cells += [result.smiles or "", ""]
            cells = [*self._cells(cells)]
            # csv quotes a cell with a line feed, but not one with a carriage return.
            if any(isinstance(cell, str) and "\r" in cell for cell in cells):
                numbers = ["" if math.isnan(value) else value for value in values.tolist()]
                lines.append(_csv_line([*cells, *numbers, *last], csv.QUOTE_ALL))
            else:
                after = _csv_line(["", *last]) if last else "\n"
                lines.append(f"{_csv_line(cells)[:-1]},{shown}{after}")
        return _encoded("".join(lines))

    def _line(self, index: int, record: Record, result: Result) -> bytes:
        cells = zip(self._names, record.passthrough, strict=True)
        row = {name: value for name, value in cells if value is not None}
        ids = dict(zip(("id",), self._id(record), strict=False))
        answer = item(index, result, self.info, self.tasks)
        line = {"index": index, **ids, **answer, "row": row}
        return orjson.dumps(line, default=str) + b"\n"  # Parquet has values that JSON has not


_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_NUMBER = re.compile(r"[+-][\d.,]+(?:[eE][+-]?\d+)?")


def escaped(cell: object) -> object:
    """Return a cell with an apostrophe before text that a spreadsheet would run as a formula.

    That is text that begins with `=`, `+`, `-`, `@`, a tab or a line end (OWASP, CSV injection),
    and is no number such as -1.5.
    """
    if isinstance(cell, str) and cell.startswith(_FORMULA) and not _NUMBER.fullmatch(cell):
        return f"'{cell}"
    return cell


_SHOWN_ALIKE = 1e-4, 1e16
"""Between these, orjson and Python write a number with the same characters."""
_MARK = 1e300
_WRITTEN_MARK = orjson.dumps(_MARK).decode()  # the only number with an exponent that orjson writes


def _number_cells(table: NDArray[np.float64]) -> list[str]:
    """Return the rows of a table as Python writes their numbers, with commas between them and
    nothing for NaN.

    `repr` of 700 numbers takes a third of the time of a model pass; orjson writes them ten times as
    fast, but very small and very large ones in other words.
    """
    if not table.size:
        return []
    size = np.abs(table)
    alike = (table == 0) | ((size >= _SHOWN_ALIKE[0]) & (size < _SHOWN_ALIKE[1]))
    marked = np.ascontiguousarray(np.where(alike, table, _MARK))
    written = orjson.dumps(marked, option=orjson.OPT_SERIALIZE_NUMPY).decode()[2:-2]
    pieces = written.split(_WRITTEN_MARK)
    others = ("" if math.isnan(value) else repr(value) for value in table[~alike].tolist())
    text = "".join(chain.from_iterable(zip_longest(pieces, others, fillvalue="")))
    return text.split("],[")


class _Line:
    """What a csv writer writes to; it hands each line back as the result of `writerow`."""

    def write(self, text: str) -> str:
        return text


def _csv_line(cells: Sequence[object], quoting: Literal[0, 1] = csv.QUOTE_MINIMAL) -> str:
    writer = csv.writer(_Line(), lineterminator="\n", quoting=quoting)
    return cast("str", writer.writerow(cells))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")
