"""Substructure search by SMARTS (RDKit)."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from rdkit import Chem, rdBase

from models.data.smiles import read_smiles
from models.errors import InvalidInputError

MOST_LISTED = 20
"""Occurrences of a substructure that are listed."""
_EXPECTED = "expected one such as 'c1ccccc1'"
_POSITION = re.compile(r"around position (\d+)")


class SmartsError(InvalidInputError):
    """A text is no SMARTS."""

    code = "invalid_smarts"


def find_substructure(smiles: str, smarts: str) -> list[tuple[int, ...]]:
    """Find a substructure in a molecule.

    Args:
        smiles: a readable SMILES. Its hydrogen atoms are no atoms of their own: `[H]` finds
            nothing, `[CH3]` a methyl group.
        smarts: the substructure.

    Returns:
        By occurrence its atoms, in the order of the SMARTS and numbered from 0 in the order of the
        SMILES; up to `MOST_LISTED` occurrences with different atoms, none if there is none.

    Raises:
        SmartsError: see `read_smarts`.
        MoleculeError: the molecule cannot be read.
    """
    pattern = read_smarts(smarts)
    with rdBase.BlockLogs():
        mol = read_smiles(smiles, strict=False)
        return list(mol.GetSubstructMatches(pattern))[:MOST_LISTED]


@lru_cache(maxsize=16)
def read_smarts(smarts: str) -> Chem.Mol:
    """Read a SMARTS.

    Raises:
        SmartsError: it cannot be read, or has no atoms; the message says near which character, if
            RDKit says it.
    """
    if not smarts.isascii() or any(character.isspace() for character in smarts):
        # RDKit would read what follows a blank as a name, or as an extension.
        raise SmartsError(f"got blanks or characters other than ASCII in a SMARTS, {_EXPECTED}")
    with _rdkit_log() as said:
        pattern = Chem.MolFromSmarts(smarts)
    if pattern is None:
        found = _POSITION.search("\n".join(said))
        where = f" near character {found[1]}" if found else ""
        raise SmartsError(f"got no valid SMARTS{where}, {_EXPECTED}")
    if not pattern.GetNumAtoms():
        raise SmartsError(f"got a SMARTS without atoms, {_EXPECTED}")
    return pattern


class _Collector(logging.Handler):
    """Keeps messages."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def _rdkit_log() -> Iterator[list[str]]:
    """Collect what RDKit logs, in place of writing it to standard error: it shows the structure."""
    logger, collector = logging.getLogger("rdkit"), _Collector()
    handlers, propagates = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [collector], False
    rdBase.LogToPythonLogger()
    try:
        yield collector.messages
    finally:
        rdBase.LogToCppStreams()
        logger.handlers, logger.propagate = handlers, propagates
