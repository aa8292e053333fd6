"""Structures and measured values of training molecules, in a file of an operator who has the data:
an SQLite database, of which the service reads a few rows at a time.

Rows are found by the sha256 of a domain's file, so that they are never those of other molecules.
"""

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from models.errors import ConfigError
from models.files import write_atomically

_KIND = 0x474D4453
"""`application_id` of the file, "GMDS"."""
_SCHEMA = """
    CREATE TABLE molecules (
        domain TEXT NOT NULL, line INTEGER NOT NULL, smiles TEXT NOT NULL, labels TEXT NOT NULL,
        PRIMARY KEY (domain, line)
    ) WITHOUT ROWID
"""


@dataclass(frozen=True)
class Structure:
    """A training molecule.

    Attributes:
        smiles: canonical SMILES.
        values: the known labels: 0 or 1, or numbers in their units.
    """

    smiles: str
    values: Mapping[str, float]


def write_structures(
    path: Path, domains: Mapping[str, Iterable[tuple[int, Structure]]]
) -> dict[str, int]:
    """Write structures to a new file, which replaces an older one.

    Args:
        path: of the file.
        domains: molecules with their lines, by sha256 of the domain's file.

    Returns:
        Number of molecules, by sha256.

    Raises:
        OSError: the file cannot be written.
    """
    counts = {}

    def write(temporary: Path) -> None:
        with closing(sqlite3.connect(temporary)) as database, database:
            database.execute(f"PRAGMA application_id = {_KIND}")
            database.execute(_SCHEMA)
            for domain, molecules in domains.items():
                rows = [
                    (domain, line, found.smiles, json.dumps(dict(found.values)))
                    for line, found in molecules
                ]
                database.executemany("INSERT INTO molecules VALUES (?, ?, ?, ?)", rows)
                counts[domain] = len(rows)

    write_atomically(path, write)
    return counts


class Structures:
    """A file of structures. Every search opens it, so that threads share no connection."""

    def __init__(self, path: Path) -> None:
        """Open and check a file. Raises ConfigError: it is missing, or is no such file."""
        self._path = path
        try:
            with closing(self._connect()) as database:
                kind = database.execute("PRAGMA application_id").fetchone()[0]
        except sqlite3.Error as error:
            raise ConfigError(f"{path}: got {error}, expected a file of structures") from error
        if kind != _KIND:
            expected = "expected one of `gmerging domain-structures`"
            raise ConfigError(f"{path}: got a database of another kind, {expected}")

    def find(self, domain: str, lines: Sequence[int]) -> dict[int, Structure]:
        """Return the molecules at some lines that the file has.

        Args:
            domain: sha256 of the domain's file.
            lines: of the source.
        """
        command = "SELECT smiles, labels FROM molecules WHERE domain = ? AND line = ?"
        with closing(self._connect()) as database:
            rows = {line: database.execute(command, (domain, line)).fetchone() for line in lines}
        return {line: Structure(row[0], json.loads(row[1])) for line, row in rows.items() if row}

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True)
