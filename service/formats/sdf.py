"""SDF: mol blocks, each followed by data fields and a line `$$$$`.

Concatenated `.mol` files have no `$$$$`: there a block ends where the header of the next begins. A
block whose beginning cannot be found becomes an error.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from models.data.tables import LONGEST_LINE, LONGEST_RECORD, TextLines
from models.errors import InvalidInputError
from service.core.reading import ItemFailure, MolBlock

MOST_FIELDS = 1000
"""Largest number of different data fields in one file."""
HEADER_LINES = 3
"""Lines of a mol block before its counts line."""
_LONGEST_BLOCK_LINES = 20_000
_END = "M  END"
_SEPARATOR = "$$$$"
_COUNTS_BEGIN, _COUNTS_END = tuple(" 0123456789"), ("V2000", "V3000")
_FIELD = re.compile(r">[^<]*<(.*)>|>[ \t]*(DT\d+)[ \t]*$")
# Only numbers before the name: any other line that looks like a field may be text of a value.
_PLAIN_FIELD = re.compile(r">(?:[ \t]|\d++|\([^()]*\)|DT\d++)*+<(.*)>")
_PROGRAM = re.compile(r"(?:\d{10}| {10})[23]D")  # second line of a header: date and dimensions
_NO_BEGINNING = "got a mol block whose beginning cannot be found, expected a line $$$$ before it"


@dataclass(frozen=True)
class SdfRecord:
    """One record of an SDF.

    Attributes:
        source: the mol block, or the reason why there is none.
        name: first line of the block.
        fields: data fields by name; the lines of a value are separated by line feeds.
    """

    source: MolBlock | ItemFailure
    name: str
    fields: dict[str, str]


def read_sdf(lines: TextLines) -> Iterator[SdfRecord]:
    """Yield the records of an SDF one by one; no record is left out."""
    record = _Record()
    for line in lines:
        text = line.rstrip("\r\n")
        if lines.cut:
            message = f"got a line of more than {LONGEST_LINE} characters, expected at most that"
            record.problem = ItemFailure("invalid_row", f"line {lines.number}: {message}")
        if text.strip() == _SEPARATOR:
            yield from record.finished()
            record = _Record()
        elif (beginning := record.add(text)) is not None:
            yield from record.finished()
            record = _Record()
            for header in beginning:
                record.add(header)
    if record.has_text():
        yield from record.finished()


def field_names(lines: TextLines) -> tuple[str, ...]:
    """Return the names of all data fields of a file, in the order of their first occurrence.

    Raises:
        InvalidInputError: there are more than 1000 names, or the text holds nothing of an SDF.
    """
    names: dict[str, None] = {}
    previous = ""
    is_sdf, has_text = False, False
    for line in lines:
        is_sdf = is_sdf or line.startswith((_END, _SEPARATOR)) or is_counts(line)
        has_text = has_text or not line.isspace()
        if (name := _field_name(line, previous)) is not None:
            names[name] = None
            is_sdf = True
            if len(names) > MOST_FIELDS:
                shown = f"got data fields of more than {MOST_FIELDS} names"
                raise InvalidInputError(f"{shown}, expected at most that many")
        previous = line
    if has_text and not is_sdf:
        got = "got no counts line (V2000 or V3000), no M  END, no data field and no $$$$"
        raise InvalidInputError(f"{got}, expected an SDF or a mol file")
    return tuple(names)


def _field_name(line: str, previous: str) -> str | None:
    """Return the name in the header line of a data field; None for any other line.

    Args:
        line: the line.
        previous: the line before it; the value of a field ends with a blank line.
    """
    if line[:1] != ">":
        return None
    fresh = not previous.strip() or previous.startswith(_END)
    match = (_FIELD if fresh else _PLAIN_FIELD).match(line)
    if match is None:
        return None
    return next(name.strip() for name in match.groups() if name is not None)


class _Record:
    """A record whose lines are still being read."""

    def __init__(self) -> None:
        self.problem: ItemFailure | None = None
        self._block: list[str] = []
        self._data: list[str] = []
        self._characters = 0
        self._counts_at: int | None = None
        self._ended = False
        self._inside_value = False  # in a mol block that is the value of a data field
        self._num_lost = 0  # blocks without a beginning

    def has_text(self) -> bool:
        """Return whether any line is not blank."""
        return any(line.strip() for line in (*self._block, *self._data))

    def add(self, text: str) -> list[str] | None:
        """Add a line.

        Returns:
            None, or the header lines of the next record if it begins here; they are removed from
            this one.
        """
        if self._ended:
            return self._add_data(text)
        if is_counts(text):
            if self._counts_at is not None:
                return [*_split_off_header(self._block), text]
            self._counts_at = len(self._block)
        if text.startswith(_END):
            self._block.append(_END)
            self._ended = True
            rest = text.removeprefix(_END).strip()
            if rest:  # the line end after M  END is missing, as in concatenated files
                self._data.append(rest)
        elif _PLAIN_FIELD.match(text):  # M  END, or the whole block, is missing
            self._ended = True
            self._data.append(text)
        elif len(self._block) <= _LONGEST_BLOCK_LINES:
            self._block.append(text)
        return None

    def _add_data(self, text: str) -> list[str] | None:
        if is_counts(text) and not self._inside_value:
            if not _opens_value(self._data[-HEADER_LINES - 1 :]):
                return [*_split_off_header(self._data), text]
            self._inside_value = True
        elif text.startswith(_END):
            self._num_lost += not self._inside_value
            self._inside_value = False
        self._data.append(text)
        self._characters += len(text)
        if self._characters > LONGEST_RECORD:
            message = f"got data fields of more than {LONGEST_RECORD} characters"
            self.problem = ItemFailure("invalid_row", f"{message}, expected at most that")
            del self._data[: -HEADER_LINES - 1]
        return None

    def finished(self) -> Iterator[SdfRecord]:
        """Yield the record, and an error for every block inside it whose beginning is lost."""
        source: MolBlock | ItemFailure = MolBlock("\n".join(self._block) + "\n")
        if not any(line.strip() for line in self._block):
            source = ItemFailure(
                "mol_block_syntax", "got no mol block, expected one in each record"
            )
        if len(self._block) > _LONGEST_BLOCK_LINES:
            message = f"got a mol block of more than {_LONGEST_BLOCK_LINES} lines"
            source = ItemFailure("mol_block_syntax", message)
        yield SdfRecord(self.problem or source, self._name(), _fields(self._data))
        for _ in range(self._num_lost):
            yield SdfRecord(ItemFailure("mol_block_syntax", _NO_BEGINNING), "", {})

    def _name(self) -> str:
        """Return the first line of the header, from which lines may be lost."""
        if self._counts_at is None:
            return self._block[0].strip() if self._block else ""
        header = self._block[: self._counts_at][-HEADER_LINES:]
        if not header or (len(header) < HEADER_LINES and _PROGRAM.search(header[0])):
            return ""
        return header[0].strip()


def is_counts(text: str) -> bool:
    """Return whether a line is a counts line, which follows the header of a mol block."""
    return text.startswith(_COUNTS_BEGIN) and text.rstrip().endswith(_COUNTS_END)


def _opens_value(lines: list[str]) -> bool:
    """Return whether lines open a data field whose value is a mol block.

    A value line and a blank line are a short value; the block after them has lost lines of its
    header.
    """
    if len(lines) <= HEADER_LINES or not _FIELD.match(lines[0]):
        return False
    return not lines[1].strip() or bool(lines[2].strip())


def _split_off_header(lines: list[str]) -> list[str]:
    """Remove the last lines, the header of the next block, and return them.

    Lines of a field's value are left.
    """
    begin = max(0, len(lines) - HEADER_LINES)
    fields = [k for k in range(len(lines)) if _PLAIN_FIELD.match(lines[k])]
    if fields:
        values = range(fields[-1], len(lines))
        begin = max(begin, next((k + 1 for k in values if not lines[k].strip()), begin))
    header = lines[begin:]
    del lines[begin:]
    return header


def _fields(data: list[str]) -> dict[str, str]:
    values: list[tuple[str, list[str]]] = []
    previous = ""
    for line in data:
        if (name := _field_name(line, previous)) is not None:
            values.append((name, []))
        elif values:
            values[-1][1].append(line)
        previous = line
    fields: dict[str, str] = {}
    for name, lines in values:
        text = [k for k, line in enumerate(lines) if line.strip()]
        value = "\n".join(lines[text[0] : text[-1] + 1]) if text else ""
        fields[name] = f"{fields[name]}\n{value}" if name in fields else value
    return fields
