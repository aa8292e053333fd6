"""Files of unlabelled molecules, plain or gzip: lines of SMILES or tables with a SMILES column;
and Parquet files."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from models.data.tables import (
    SAMPLE,
    Row,
    is_header,
    molecule_column,
    open_stream,
    open_table,
    read_smiles_lines,
)
from models.errors import DataError, InvalidInputError
from models.extras import optional_package

_TABLES = (".csv", ".tsv")
_PARQUET = (".parquet", ".pq")


def read_molecules(path: Path, column: str | None = None) -> Iterator[str]:
    """Yield the SMILES of a file as written, row by row; "" for a row of a table that is malformed.

    Args:
        path: a table, if its name ends in `.csv` or `.tsv` (`.gz` may follow), or if its first line
            names columns, among them one such as `smiles`; or a Parquet file, by its ending.
            Otherwise every line begins with a SMILES, which other words may follow, and a first
            line `smiles ...` is a header.
        column: the name of the table's column that holds the molecules; None to find it.

    Raises:
        DataError: the file is absent, is not text, or has no such column.
        MissingPackageError: pyarrow, which reads Parquet files, is not installed.
    """
    try:
        if path.suffix in _PARQUET:
            yield from _read_parquet(path, column)
            return
        with open_stream(path) as stream:
            if column is None and not _is_table(path, stream):
                yield from (smiles for _, smiles, _ in read_smiles_lines(stream))
                return
            table = open_table(stream)
            sample = list(islice(table.rows, SAMPLE))
            k = molecule_column(table.columns, sample, column)
            for rows in (sample, table.rows):
                yield from ("" if row.problem else row.cells[k] for row in rows)
    except FileNotFoundError:
        raise DataError(f"got no file {path}, expected molecules") from None
    except (OSError, InvalidInputError) as error:
        raise DataError(f"{path}: {error}") from error


def _read_parquet(path: Path, column: str | None) -> Iterator[str]:
    pa = optional_package("pyarrow", "Parquet", "predict")
    optional_package("pyarrow.parquet", "Parquet", "predict")
    try:
        table = pa.parquet.read_table(path)
    except pa.ArrowInvalid as error:
        raise InvalidInputError(f"got no Parquet file ({error}), expected one") from None
    names, rows = table.column_names, table.slice(0, SAMPLE).to_pylist()
    sample = [
        Row(k, k, tuple("" if cell is None else str(cell) for cell in row.values()), None)
        for k, row in enumerate(rows, 1)
    ]
    found = table.column(molecule_column(names, sample, column))
    yield from ("" if cell is None else str(cell) for cell in found.to_pylist())


def _is_table(path: Path, stream: BinaryIO) -> bool:
    if any(ending in _TABLES for ending in path.suffixes[-2:]):
        return True
    try:
        return is_header(open_table(stream).columns)
    except InvalidInputError:  # an empty file
        return False
