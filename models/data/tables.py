"""Reader of tables of molecules: CSV and its relatives, and lines of SMILES.

Encoding: by the byte order mark (UTF-8, UTF-16). Without one, UTF-16 if every second of the first
bytes is zero, UTF-8 if the whole file is valid UTF-8, else Windows-1252, which decodes any byte.

Delimiter: by a first line `sep=;`, as Excel writes it; else the one among `,` `;` tab and `|` that
reads the first records best.

Records: those of Python's csv module. A quoted cell may contain line breaks, in the header too. If
the header has blanks before a quote (`id, "smiles"`), blanks after a delimiter are skipped. As in
`pandas.read_csv`, a blank line is no record and a quoted empty cell (`""`) is one. An unclosed
quote spoils the row in which it opens; the lines after it are read as rows.

Memory does not grow with the length of a file, a line or a cell.
"""

import codecs
import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal, cast

from rdkit import Chem, rdBase

from models.errors import InvalidInputError, did_you_mean

Encoding = Literal["utf-8", "utf-16", "cp1252"]
GZIP_MAGIC = b"\x1f\x8b"
DAMAGED_GZIP = (EOFError, zlib.error, gzip.BadGzipFile)
"""Exceptions of reading a damaged gzip file."""
LONGEST_LINE = 128 * 1024
"""Most characters of a line."""
LONGEST_RECORD = 256 * 1024
"""Most characters of a record, whose quoted cells may span lines."""
MOST_COLUMNS = 10_000
SAMPLE = 50
"""Number of records from which a delimiter or a column is chosen."""
_DELIMITERS = (",", ";", "\t", "|")
_NO_TEXT = (
    *(GZIP_MAGIC, b"PK\x03\x04", b"PK\x05\x06", b"\xd0\xcf\x11\xe0"),
    *(b"\xfd7zX", b"7z\xbc\xaf", b"Rar!", b"\x28\xb5\x2f\xfd"),
    *(b"BZh%d" % k for k in range(1, 10)),
)
"""First bytes of archives, compressed files and Excel workbooks."""
_BLOCK_BYTES = 1024**2
_LONGEST_SHOWN = 200
_CUT = "\ufffd\n"  # in place of a line that is too long; compared by identity
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[;,\t]*[\r\n]*', re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """One record of a table.

    Attributes:
        number: of the record; 1 is the first after the header.
        line: where the record starts; 1 is the first line of the file.
        cells: one per column; short rows are padded, surplus empty cells are dropped.
        problem: reason to refuse the row; None if there is none.
    """

    number: int
    line: int
    cells: tuple[str, ...]
    problem: str | None


@dataclass(frozen=True)
class Table:
    """A table that is read row by row.

    Attributes:
        columns: names in the file, stripped; `unique_names` makes them distinct.
        rows: iterator over the rows.
        encoding: of the file.
        delimiter: between cells.
    """

    columns: tuple[str, ...]
    rows: Iterator[Row]
    encoding: Encoding
    delimiter: str


def damaged_gzip(error: Exception) -> InvalidInputError:
    """Make the client's error from one of `DAMAGED_GZIP`."""
    return InvalidInputError(f"got a damaged gzip file ({error}), expected a whole one")


def open_stream(path: Path) -> BinaryIO:
    """Open a file, plain or gzip by its first bytes and not by its name.

    Raises:
        OSError: the file cannot be opened.
    """
    with path.open("rb") as stream:
        packed = stream.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    return cast("BinaryIO", gzip.open(path)) if packed else path.open("rb")


def open_table(stream: BinaryIO, delimiter: str | None = None) -> Table:
    """Read a table from the start of a stream. The stream stays open.

    Args:
        stream: seekable; it is read once to its end to detect the encoding.
        delimiter: None to detect it.

    Raises:
        InvalidInputError: no header, not a text, or more than `MOST_COLUMNS` columns.
    """
    encoding = encoding_of(stream)
    sample = list(islice(_bounded(TextLines(stream, encoding)), 10 * SAMPLE))
    separator = _SEPARATOR_LINE.fullmatch(sample[0]) if sample else None
    if delimiter is None:
        delimiter = separator[1] if separator else _delimiter_of(sample)
    lines = TextLines(stream, encoding)
    if separator:
        next(lines)
    blanks = re.compile(re.escape(delimiter) + ' +"')
    skip_blanks = any(map(blanks.search, sample[bool(separator) :][:1]))
    records = _records(lines, delimiter, skip_blanks)
    line, header, problem = next(records, (1, [], "got no text"))
    if problem is not None:
        raise InvalidInputError(f"line {line}: {problem}, expected a header that names the columns")
    columns = tuple(name.strip() for name in header)
    if len(columns) > MOST_COLUMNS:
        raise InvalidInputError(f"got {len(columns)} columns, expected at most {MOST_COLUMNS}")
    return Table(columns, _rows(records, len(columns)), encoding, delimiter)


def unique_names(columns: Sequence[str]) -> tuple[str, ...]:
    """Make column names distinct: "a", "a.1", ... for columns of one name."""
    used, names = set(columns), []
    counts: dict[str, int] = {}
    for column in columns:
        name = column
        if column in counts:
            while name in used:
                counts[column] += 1
                name = f"{column}.{counts[column]}"
            used.add(name)
        counts.setdefault(column, 0)
        names.append(name)
    return tuple(names)


def is_header(columns: Sequence[str]) -> bool:
    """Return True if a first record names columns, one of them of molecules, and starts with no
    molecule.
    """
    named = any(_rank(name) is not None for name in columns)
    return len(columns) > 1 and named and not _is_molecule(columns[0])


# --- text ---


def encoding_of(stream: BinaryIO) -> Encoding:
    """Detect the encoding of a stream from its byte order mark, or else from its whole content.

    Raises:
        InvalidInputError: UTF-32, an archive or a workbook, or a damaged gzip file.
    """
    try:
        stream.seek(0)
        start = stream.read(4)
        zeros = tuple(byte == 0 for byte in start)
        if zeros[2:] == (True, True) or zeros[:2] == (True, True):
            if start.strip(b"\0"):
                raise InvalidInputError("got UTF-32, expected UTF-8, UTF-16 or Windows-1252")
        elif start.startswith(_UTF16_MARKS) or zeros in _UTF16_ZEROS:
            return "utf-16"
        if start.startswith(_NO_TEXT):
            raise InvalidInputError("got an archive or an Excel workbook, expected a text file")
        decoder, block = codecs.getincrementaldecoder("utf-8")(), start
        while block:
            decoder.decode(block)
            block = stream.read(_BLOCK_BYTES)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return "cp1252"
    except DAMAGED_GZIP as error:
        raise damaged_gzip(error) from None
    return "utf-8"


_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_UTF16_ZEROS = ((False, True) * 2, (True, False) * 2)


class TextLines:
    """Lines of a text file with their ends (LF, CR LF or CR), of at most `LONGEST_LINE` characters.

    Attributes:
        number: of the line returned last; 1 is the first.
        cut: True if the end of that line is dropped because it is too long.
    """

    def __init__(self, stream: BinaryIO, encoding: Encoding) -> None:
        """Start at the beginning of a stream. The stream stays open."""
        stream.seek(0)
        # A UTF-8 mark before text that is not UTF-8 is skipped.
        if encoding == "cp1252" and stream.read(3) != codecs.BOM_UTF8:
            stream.seek(0)
        codec: str = "utf-8-sig" if encoding == "utf-8" else encoding
        if encoding == "utf-16":  # the codec removes the mark, and needs one
            start = stream.read(2)
            stream.seek(0)
            if start not in _UTF16_MARKS:
                codec = "utf-16-be" if start[:1] == b"\0" else "utf-16-le"
        errors = _C1_CONTROLS if encoding == "cp1252" else "replace"
        unowned = cast("BinaryIO", _UnownedStream(stream))
        self._text = io.TextIOWrapper(unowned, codec, errors, newline="")
        self.number, self.cut = 0, False

    def __iter__(self) -> Iterator[str]:
        """Return the iterator itself."""
        return self

    def __next__(self) -> str:
        """Return the next line."""
        line = self._text.readline(LONGEST_LINE)
        if not line:
            raise StopIteration
        self.number += 1
        self.cut = _goes_on(line)
        if self.cut:
            while _goes_on(self._text.readline(LONGEST_LINE)):
                pass
        return line


def _goes_on(line: str) -> bool:
    return len(line) == LONGEST_LINE and line[-1] not in "\r\n"


class _UnownedStream(io.BufferedIOBase):
    """A stream that its reader does not close; a text wrapper closes its stream when collected."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        return self._stream.read(-1 if size is None else size)

    read1 = read


def _c1_controls(error: UnicodeError) -> tuple[str, int]:
    """Decode the five bytes that Windows-1252 leaves undefined as controls, as browsers do."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("latin-1"), error.end


_C1_CONTROLS = "gmerging-c1-controls"
codecs.register_error(_C1_CONTROLS, _c1_controls)

# --- records ---

_Record = tuple[int, list[str], str | None]  # first line, cells, problem
_TOO_LONG = f"got a line of more than {LONGEST_LINE} characters, expected at most that"
_NOT_CLOSED = "got a quote that opens a cell, expected another that closes it"


class _RecordTooLongError(Exception):
    """A record of more than `LONGEST_RECORD` characters."""


class _RecordLines:
    """Lines for a csv reader; it keeps those of the current record."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self.begin()

    def begin(self) -> None:
        """Start a new record."""
        self.pending: list[str] = []
        self._characters = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._characters > LONGEST_RECORD:
            raise _RecordTooLongError
        line = next(self._lines)
        if getattr(self._lines, "cut", False):
            line = _CUT
        self.pending.append(line)
        self._characters += len(line)
        return line


def _records(lines: Iterator[str], delimiter: str, skip_blanks: bool = False) -> Iterator[_Record]:
    """Split lines into records; line numbers and cut lines are known if `lines` is a `TextLines`.

    Args:
        lines: with their ends.
        delimiter: between cells.
        skip_blanks: ignore blanks after a delimiter.
    """
    if csv.field_size_limit() < LONGEST_RECORD:
        csv.field_size_limit(LONGEST_RECORD)  # one limit for the whole process
    source = _RecordLines(lines)
    reader = csv.reader(source, delimiter=delimiter, strict=True, skipinitialspace=skip_blanks)
    line = 1 + getattr(lines, "number", 0)
    while True:
        source.begin()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except (csv.Error, _RecordTooLongError):
            # A quote inside a cell or an unclosed quote: every line is a record of its own.
            records = [_one_line(text, delimiter, skip_blanks) for text in source.pending]
        else:
            if len(source.pending) == 1:
                cut = source.pending[0] is _CUT
                records = [([], _TOO_LONG) if cut else (cells, None)]
            else:
                cut = any(text is _CUT for text in source.pending)
                records = [(cells, _TOO_LONG if cut else None)]
        for k, (found, problem) in enumerate(records):
            blank = problem is None and _is_blank(source.pending[k], found, delimiter)
            if not blank:
                yield line + k, found, problem
        line += len(source.pending)


def _one_line(text: str, delimiter: str, skip_blanks: bool) -> tuple[list[str], str | None]:
    """Parse a line as a record of its own: its cells, and its problem."""
    if text is _CUT:
        return [], _TOO_LONG
    closed = True

    def single_line() -> Iterator[str]:
        nonlocal closed
        yield text
        closed = False  # the reader wants more: it is inside a quoted cell

    cells = next(csv.reader(single_line(), delimiter=delimiter, skipinitialspace=skip_blanks))
    if closed:
        return cells, None
    return [*cells[:-1], cells[-1].rstrip("\r\n")], _NOT_CLOSED


def _is_blank(text: str, cells: list[str], delimiter: str) -> bool:
    return not cells or (delimiter not in text and not text.strip(" \t\r\n"))


def _rows(records: Iterator[_Record], width: int) -> Iterator[Row]:
    for number, (line, cells, problem) in enumerate(records, 1):
        surplus = cells[width:]
        if problem is None and any(cell.strip() for cell in surplus):
            problem = f"got {len(cells)} cells, expected {width}, one per column of the header"
        padded = cells[:width] + [""] * (width - len(cells))
        yield Row(number, line, tuple(padded), problem)


# --- delimiter ---


def _bounded(lines: Iterator[str]) -> Iterator[str]:
    """Yield lines up to a total number of characters."""
    characters = 0
    for line in lines:
        yield line
        characters += len(line)
        if characters > LONGEST_RECORD:
            return


def _delimiter_of(sample: Sequence[str]) -> str:
    """Return the delimiter that reads the first lines of a file as the best table."""
    return max(_DELIMITERS, key=lambda delimiter: _fitness(sample, delimiter))


def _fitness(sample: Sequence[str], delimiter: str) -> tuple[float, ...]:
    """Rate how well lines read with a delimiter; larger is better, the first number counts most."""
    records = [cells for _, cells, _ in islice(_records(iter(sample), delimiter), SAMPLE + 1)]
    if not records:
        return (0.0,)
    header, *rows = records
    width = len(header)
    if len(rows) > 1:
        rows = rows[:-1]  # the last one may be incomplete
    exact = sum(len(cells) == width for cells in rows) / max(1, len(rows))
    fits = sum(not any(map(str.strip, cells[width:])) for cells in rows) / max(1, len(rows))
    clean = [name for name in header if not any(other in name for other in _DELIMITERS)]
    named = any(_rank(name) in (0, 1) for name in clean)
    return (width > 1 and named, width > 1, exact, fits, width if width > 1 else 0)


# --- the column of the molecules ---

_FIRST_NAMES = ("smiles", "canonical smiles", "isomeric smiles")
_TEXT_NAMES = re.compile(r"inchi|mol ?block|mol ?file|ctab")
_GENERIC_NAMES = (
    *("mol", "romol", "structure", "chemical structure", "molecule"),
    *("drug", "compound", "ligand", "substance", "chemical"),
)
_EXPECTED = "one of smiles, canonical_smiles, inchi, molblock, mol, structure, molecule or the like"
_SECOND_CHOICE = re.compile(
    r"scaffold|murcko|framework|\bcore\b|fragment|linker|warhead"
    r"|reaction|\brxn\b|reactant|reagent|solvent|catalyst"
)
_IDS = re.compile(r"\b(?:ids?|codes?|names?|no|nr|numbers?|cas|labels?|formula|series|batch|lot)\b")
_NO_MOLECULES = re.compile(r"key|error|valid|length|count|num|has|source|hash")
_LONGEST_TRIED = 500
_SOME, _ENOUGH, _NEARLY_ALL = 1e-9, 0.5, 0.8


def molecule_column(columns: Sequence[str], sample: Sequence[Row], name: str | None = None) -> int:
    """Find the column of the molecules, by the names of the columns and by their content.

    An explicit name (SMILES, InChI, mol block) is taken if its column holds any molecule,
    preferably in at least half of the rows. Next comes a generic name (molecule, drug, ...) whose
    column mostly holds molecules, unless another column holds more and longer ones (`C1` and `CN`
    may be names), then any column that nearly always does. If no column holds molecules, the best
    name is taken, and its rows show what is wrong.

    Args:
        columns: names of the columns.
        sample: some rows, for example the first `SAMPLE`; may be empty.
        name: the column's name (or that of `unique_names`), if it is given.

    Returns:
        Index of the column.

    Raises:
        InvalidInputError: no such column; the message lists the columns and the nearest name.
    """
    if name is not None:
        return column_called(name, columns)
    ranks = [_rank(column) for column in columns]
    shares = _Shares(sample)
    explicit = [k for k, rank in enumerate(ranks) if rank in (0, 1)]
    explicit.sort(key=lambda k: _preference(columns[k]))
    for share, least in ((shares.of_rows, _ENOUGH), (shares.of, _SOME)):
        for k in explicit:
            if share(k) >= least or (len(explicit) == 1 and shares.is_empty(k)):
                return k
    generic = [k for k, rank in enumerate(ranks) if rank == 2]
    generic.sort(key=lambda k: _GENERIC_NAMES.index(_plain(columns[k])))
    other = _other_column(columns, [k for k, rank in enumerate(ranks) if rank is None], shares)
    for k in generic:
        if shares.of(k) >= _ENOUGH:
            better = other is not None and shares.of(other) > shares.of(k)
            if other is None or not better or shares.mean_length(other) <= shares.mean_length(k):
                return k
            return other
    if other is not None:
        return other
    if explicit or generic:
        return (explicit + generic)[0]
    shown = ", ".join(columns)[:_LONGEST_SHOWN]
    first = next((column for column in columns if len(column) > 2 and _is_molecule(column)), None)
    if first is not None:
        raise InvalidInputError(
            f"got a first row that looks like a molecule ({first[:_LONGEST_SHOWN]!a}): the header "
            f"is missing, expected a first row with the names of the columns, {_EXPECTED}"
        )
    none = "none of which holds molecules"
    raise InvalidInputError(f"got columns {shown!a}, {none}, expected {_EXPECTED}")


def _other_column(
    columns: Sequence[str], candidates: Sequence[int], shares: "_Shares"
) -> int | None:
    """Find the column that holds molecules among those whose names say nothing."""
    # Neither a column of elements (C, N, O) nor one whose header is itself a molecule.
    long = [k for k in candidates if shares.mean_length(k) >= 3 and not _is_molecule(columns[k])]
    full = [k for k in long if shares.of(k) >= _NEARLY_ALL]

    def fitness(k: int) -> tuple[bool, float, float]:
        ids = _IDS.search(_plain(columns[k]))
        return ids is None, shares.of(k), shares.mean_length(k)

    return max(full, key=fitness, default=None)


def column_called(name: str, columns: Sequence[str]) -> int:
    """Find the first column of a name.

    Raises:
        InvalidInputError: no such column; the message has the nearest name.
    """
    for names in (tuple(columns), unique_names(columns)):
        if name in names:
            return names.index(name)
    hint = did_you_mean(name, (column[:80] for column in columns[:1000][::-1]))
    shown = ", ".join(columns)[:_LONGEST_SHOWN]
    raise InvalidInputError(f"got columns {shown!a}, expected {name[:80]!a}{hint}")


def _plain(name: str) -> str:
    """Split a column's name into lower-case words, also of camel case: "canonicalSMILES"."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.replace("InChI", "inchi"))
    return " ".join(re.findall(r"[a-z0-9]+", words.lower()))


def _rank(name: str) -> int | None:
    """Rank a column's name: 0 for SMILES, 1 for another text of molecules, 2 for a generic name."""
    plain = _plain(name)
    if _NO_MOLECULES.search(plain) or "{" in name:  # a line of JSON is not a name
        return None
    if "smiles" in plain or "smi" in plain.split():
        return 0
    if _TEXT_NAMES.search(plain):
        return 1
    return 2 if plain in _GENERIC_NAMES else None


def _preference(name: str) -> tuple[bool, int, int]:
    plain = _plain(name)
    first = _FIRST_NAMES.index(plain) if plain in _FIRST_NAMES else len(_FIRST_NAMES)
    return _SECOND_CHOICE.search(plain) is not None, _rank(name) or 0, first


class _Shares:
    """Shares of the cells of each column of a sample that read as molecules."""

    def __init__(self, sample: Sequence[Row]) -> None:
        self._rows = [row.cells for row in sample[:SAMPLE] if row.problem is None]
        self._known: dict[int, float] = {}

    def of(self, column: int) -> float:
        """Return the share among the cells that are not empty; 0 if all are."""
        if column not in self._known:
            texts = self._texts(column)
            self._known[column] = sum(map(_is_molecule, texts)) / max(1, len(texts))
        return self._known[column]

    def of_rows(self, column: int) -> float:
        """Return the share among all cells, empty ones included."""
        return self.of(column) * len(self._texts(column)) / max(1, len(self._rows))

    def is_empty(self, column: int) -> bool:
        """Return True if all cells are empty."""
        return not self._texts(column)

    def mean_length(self, column: int) -> float:
        """Return the mean number of characters of the cells that are not empty."""
        texts = self._texts(column)
        return sum(map(len, texts)) / max(1, len(texts))

    def _texts(self, column: int) -> list[str]:
        return [cells[column].strip() for cells in self._rows if cells[column].strip()]


_SMILES_LETTERS = re.compile(r"[A-Za-z0-9@+\-\[\]()=#$:/\\.%*~<>]+")


def _is_molecule(text: str) -> bool:
    """Return True if a text has the form of a SMILES, an InChI or a mol block.

    Nothing is sanitised, and a long text is judged by its characters, so that RDKit's time stays
    small.
    """
    text = text.strip()
    if text.startswith("InChI=") or "M  END" in text or "V2000" in text:
        return True
    smiles, _, extension = text.partition(" ")
    if extension and not extension.startswith("|"):
        return False
    if not _SMILES_LETTERS.fullmatch(smiles):
        return False
    if smiles.isalpha() and smiles.islower():  # aromatic atoms, but no ring
        return False
    if len(smiles) > _LONGEST_TRIED:
        return True
    with rdBase.BlockLogs():
        return Chem.MolFromSmiles(smiles, sanitize=False) is not None


# --- lines of SMILES ---

_EXTENSION = re.compile(r"(\|.*?\|)(?:\s+(.*))?$", re.DOTALL)


def read_smiles_lines(
    stream: BinaryIO, encoding: Encoding | None = None
) -> Iterator[tuple[int, str, str]]:
    """Read the lines of a `.smi` file: a SMILES, an optional CXSMILES extension `|...|`, an
    optional name.

    A header such as `smiles name` in the first line and blank lines are skipped. A line of more
    than `LONGEST_LINE` characters is cut, which makes its SMILES too long for every limit.

    Args:
        stream: seekable; it stays open.
        encoding: None to detect it, which reads the whole stream.

    Yields:
        Number of the line in the file, from 1; SMILES with its extension, if any; name, or "".
    """
    lines = TextLines(stream, encoding or encoding_of(stream))
    texts = ((lines.number, line.split(maxsplit=1)) for line in lines if line.strip())
    for k, (number, (smiles, *rest)) in enumerate(texts):
        if k == 0 and _rank(smiles) is not None and not _is_molecule(smiles):
            continue
        name = rest[0].strip() if rest else ""
        if extension := _EXTENSION.match(name):
            smiles, name = f"{smiles} {extension[1]}", (extension[2] or "").strip()
        yield number, smiles, name
