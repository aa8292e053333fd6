"""The writers of predictions for files, one for each kind of output."""

from collections.abc import Sequence
from typing import Literal, Protocol

from service.core.answer import Result
from service.core.engine import EngineInfo
from service.core.explaining import NOTHING, Explained
from service.core.reading import Record
from service.formats.arrow import ArrowWriter
from service.formats.molecule_files import MoleculeFile, OutputKind, ResultWriter
from service.formats.sdf_writer import SdfWriter

RowKind = Literal[OutputKind, "parquet"]
"""Kinds of output; the service itself writes no Parquet."""


class RowWriter(Protocol):
    """Writes the predictions for a file, group by group of records.

    Attributes:
        file: the input file.
        answered: number of records written so far.
        failed: number of records written with an error.
    """

    file: MoleculeFile
    answered: int
    failed: int

    def header(self) -> bytes:
        """Return what precedes the rows."""
        ...

    def rows(self, answered: Sequence[tuple[Record, Result]]) -> bytes:
        """Return one row per record."""
        ...


def row_writer(
    output: RowKind,
    file: MoleculeFile,
    info: EngineInfo,
    tasks: tuple[str, ...],
    explained: Explained = NOTHING,
    escape_formulas: bool = False,
) -> RowWriter:
    """Return the writer of a kind of output; arguments are attributes of `ResultWriter`."""
    if output == "parquet":
        return ArrowWriter(file, info, tasks, explained)
    if output == "sdf":
        return SdfWriter(file, info, tasks, explained)
    return ResultWriter(output, file, info, tasks, explained, escape_formulas)
