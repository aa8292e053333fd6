"""Files of molecules without labels: lines of SMILES, maybe with names, or tables; plain or gzip."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from models.errors import DataError, InvalidInputError
from models.tables import SAMPLE, has_header, molecule_column, open_stream, open_table, read_smiles_lines


def read_molecules(path: Path, column: str | None = None) -> Iterator[str]:
    """The molecules of a file as they are written, one by one; a row that cannot be taken is "".

    Args:
        path: a table, if its first line names a column of molecules among others; otherwise every
            line begins with a SMILES, a name or other things may follow it, and a first line
            `smiles ...` is a header.
        column: the file is a table, and this column holds the molecules.

    Raises:
        DataError: no such file, no text, or no such column.
    """
    try:
        with open_stream(path) as stream:
            if column is None and not (has_header(stream) and len(open_table(stream).columns) > 1):
                yield from (smiles for _, smiles, _ in read_smiles_lines(stream))
                return
            table = open_table(stream)
            sample = list(islice(table.rows, SAMPLE))
            at = molecule_column(table.columns, sample, column)
            for rows in (sample, table.rows):
                yield from ("" if row.problem else row.cells[at] for row in rows)
    except (OSError, InvalidInputError) as error:
        raise DataError(f"{path}: {error}") from error
