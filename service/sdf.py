"""SDF: mol blocks, each with data fields and a line `$$$$` after it.

Files of several `.mol` files one after another have no `$$$$`: there a block ends where the header
of the next begins. What cannot be told apart has an error.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from models.errors import InvalidInputError
from models.tables import LONGEST_LINE, LONGEST_RECORD, TextLines
from service.reading import MolBlock, Unreadable

MOST_FIELDS = 1000
"""Different names of data fields in one file."""

_LONGEST_BLOCK_LINES = 20_000
_HEADER_LINES = 3
_END = "M  END"
_COUNTS_BEGIN, _COUNTS_END = tuple(" 0123456789"), ("V2000", "V3000")
_FIELD = re.compile(r">[^<]*<(.+)>")
_NO_BEGINNING = "got a mol block whose beginning cannot be found, expected a line $$$$ before it"


@dataclass(frozen=True)
class SdfRecord:
    """One record.

    Attributes:
        source: its mol block, or why there is none.
        name: the first line of the block.
        fields: data fields by name; lines of a value are separated by line feeds.
    """

    source: MolBlock | Unreadable
    name: str
    fields: dict[str, str]


def read_sdf(lines: TextLines) -> Iterator[SdfRecord]:
    """Records one by one; none of them is left out."""
    record = _Record()
    for line in lines:
        text = line.rstrip("\r\n")
        if lines.cut:
            message = f"got a line of more than {LONGEST_LINE} characters, expected at most that"
            record.problem = Unreadable("invalid_row", f"line {lines.number}: {message}")
        if text.startswith("$$$$"):
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
    """Names of all data fields of a file, as they first come. Raises InvalidInputError."""
    names: dict[str, None] = {}
    for line in lines:
        if line[0] == ">" and (match := _FIELD.match(line)):
            names[match[1].strip()] = None
            if len(names) > MOST_FIELDS:
                shown = f"got data fields of more than {MOST_FIELDS} names"
                raise InvalidInputError(f"{shown}, expected at most that many")
    return tuple(names)


class _Record:
    """A record while its lines come."""

    def __init__(self) -> None:
        self.problem: Unreadable | None = None
        self._block: list[str] = []
        self._data: list[str] = []
        self._characters = 0
        self._counted = self._ended = False
        self._inside_value = False  # of a data field, which holds a mol block too
        self._hidden = 0

    def has_text(self) -> bool:
        """Whether there is anything but blank lines."""
        return any(line.strip() for line in (*self._block, *self._data))

    def add(self, text: str) -> list[str] | None:
        """Add a line; if another record begins with it, its lines so far, which are not kept."""
        if self._ended:
            return self._add_data(text)
        if _is_counts(text):
            if self._counted:
                return [*_taken_off(self._block), text]
            self._counted = True
        if text.startswith(_END):
            self._block.append(_END)
            self._ended = True
            if rest := text[len(_END) :].strip():  # a file without a last line end, and the next
                self._data.append(rest)
        elif self._counted and _FIELD.match(text):
            self._ended = True
            self._data.append(text)
        elif len(self._block) <= _LONGEST_BLOCK_LINES:
            self._block.append(text)
        return None

    def _add_data(self, text: str) -> list[str] | None:
        if _is_counts(text) and not self._inside_value:
            before = self._data[-_HEADER_LINES - 1 : -_HEADER_LINES]
            if not (before and _FIELD.match(before[0])):
                return [*_taken_off(self._data), text]
            self._inside_value = True
        elif text.startswith(_END):
            self._hidden += not self._inside_value
            self._inside_value = False
        self._data.append(text)
        self._characters += len(text)
        if self._characters > LONGEST_RECORD:
            message = f"got data fields of more than {LONGEST_RECORD} characters"
            self.problem = Unreadable("invalid_row", f"{message}, expected at most that")
            del self._data[: -_HEADER_LINES - 1]
        return None

    def finished(self) -> Iterator[SdfRecord]:
        """The record, and an error for each block that lies in it without a beginning."""
        name = self._block[0].strip() if self._block else ""
        source: MolBlock | Unreadable = MolBlock("\n".join(self._block) + "\n")
        if len(self._block) > _LONGEST_BLOCK_LINES:
            message = f"got a mol block of more than {_LONGEST_BLOCK_LINES} lines"
            source = Unreadable("mol_block_syntax", message)
        yield SdfRecord(self.problem or source, name, _fields(self._data))
        for _ in range(self._hidden):
            yield SdfRecord(Unreadable("mol_block_syntax", _NO_BEGINNING), "", {})


def _is_counts(text: str) -> bool:
    """The line that comes after the header of a mol block."""
    return text.startswith(_COUNTS_BEGIN) and text.rstrip().endswith(_COUNTS_END)


def _taken_off(lines: list[str]) -> list[str]:
    """The last lines, which are the header of another block."""
    header = lines[-_HEADER_LINES:]
    del lines[-_HEADER_LINES:]
    return header


def _fields(data: list[str]) -> dict[str, str]:
    values: list[tuple[str, list[str]]] = []
    for line in data:
        if match := _FIELD.match(line):
            values.append((match[1].strip(), []))
        elif values:
            values[-1][1].append(line)
    fields: dict[str, str] = {}
    for name, lines in values:
        value = "\n".join(lines).strip("\n")
        fields[name] = f"{fields[name]}\n{value}" if name in fields else value
    return fields
