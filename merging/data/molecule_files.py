"""Files of molecules without labels: lines of SMILES or tables, plain or gzip."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from models.data.tables import (
    SAMPLE,
    is_header,
    molecule_column,
    open_stream,
    open_table,
    read_smiles_lines,
)
from models.errors import DataError, InvalidInputError

_TABLES = (".csv", ".tsv")


def read_molecules(path: Path, column: str | None = None) -> Iterator[str]:
    """The molecules of a file as they are written, one by one; a row that cannot be taken is "".

    Args:
        path: a table, if its name ends in `.csv` or `.tsv` (`.gz` may follow), or if its first line
            names columns, one of SMILES or the like. Otherwise every line begins with a SMILES; a
            name or other things may follow it, and a first line `smiles ...` is a header.
        column: the file is a table, and this column holds the molecules.

    Raises:
        DataError: no such file, no text, or no such column.
    """
    try:
        with open_stream(path) as stream:
            if column is None and not _is_table(path, stream):
                yield from (smiles for _, smiles, _ in read_smiles_lines(stream))
                return
            table = open_table(stream)
            sample = list(islice(table.rows, SAMPLE))
            at = molecule_column(table.columns, sample, column)
            for rows in (sample, table.rows):
                yield from ("" if row.problem else row.cells[at] for row in rows)
    except FileNotFoundError:
        raise DataError(f"got no file {path}, expected molecules") from None
    except (OSError, InvalidInputError) as error:
        raise DataError(f"{path}: {error}") from error


def _is_table(path: Path, stream: BinaryIO) -> bool:
    if any(ending in _TABLES for ending in path.suffixes[-2:]):
        return True
    try:
        return is_header(open_table(stream).columns)
    except InvalidInputError:  # an empty file
        return False
