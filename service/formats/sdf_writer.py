"""Predictions as SDF: the molecule of every record, with its own fields and the predictions as data
fields."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from models.data.tables import unique_names
from service.core.answer import Answer, Result
from service.core.engine import EngineInfo
from service.core.explaining import NOTHING, Explained
from service.core.reading import ItemFailure, MolBlock, Record
from service.formats.answers import number_columns, number_table
from service.formats.explanation_columns import (
    ALERTS,
    alert_cells,
    percentile_columns,
    percentile_table,
)
from service.formats.molecule_files import MoleculeFile

_EMPTY = "\n  G-Merging\n\n  0  0  0  0  0  0  0  0  0  0999 V2000\nM  END\n"
"""A molecule without atoms."""
_END = "M  END"
_IN_NAMES = re.compile(r"[<>\r\n]")


@dataclass
class SdfWriter:
    """Writes the predictions for a file as SDF, group by group of records.

    The molecule of a record is its own mol block where the file was an SDF, else one with computed
    coordinates, with the record's id as its name; it has no atoms where there is neither. Data
    fields are those of the columns of CSV that are not empty, under unique names.

    Attributes:
        file, info, tasks, explained, answered, failed: as of
            `service.formats.molecule_files.ResultWriter`.
    """

    file: MoleculeFile
    info: EngineInfo
    tasks: tuple[str, ...]
    explained: Explained = NOTHING
    answered: int = 0
    failed: int = 0

    def __post_init__(self) -> None:
        self._is_sdf = self.file.smiles_column is None
        # The name of a mol block is its first line.
        columns = self.file.columns[self._is_sdf :]
        labels = [*number_columns(self.info, self.tasks), *percentile_columns(self.explained)]
        alerts = [ALERTS] if "alerts" in self.explained.names else []
        named = [*columns, "gmerging_smiles", "gmerging_error", *labels, *alerts]
        self._names = unique_names([_IN_NAMES.sub("_", name) for name in named])

    def header(self) -> bytes:
        """Return what precedes the records: nothing."""
        return b""

    def rows(self, answered: Sequence[tuple[Record, Result]]) -> bytes:
        """Return one record per record."""
        good = [result for _, result in answered if isinstance(result, Answer)]
        cells = iter(self._numbers_and_alerts(good))
        text = "".join(
            self._record(record, result, next(cells) if isinstance(result, Answer) else [])
            for record, result in answered
        )
        self.answered += len(answered)
        self.failed += len(answered) - len(good)
        return text.encode("utf-8", "replace")

    def _numbers_and_alerts(self, good: Sequence[Answer]) -> Iterator[list[str]]:
        if not good:
            return
        tables = number_table(good, self.info, self.tasks), percentile_table(good, self.explained)
        with_alerts = "alerts" in self.explained.names
        alerts = [[cell] for cell in alert_cells(good)] if with_alerts else [[]] * len(good)
        for *numbers, own in zip(*tables, alerts, strict=True):
            values = [value for row in numbers for value in row.tolist()]
            yield [*("" if math.isnan(value) else repr(value) for value in values), *own]

    def _record(self, record: Record, result: Result, predicted: Sequence[str]) -> str:
        smiles, error = "", ""
        if isinstance(result, ItemFailure):
            error = f"{result.code}: {result.message}"
        else:
            smiles = result.smiles or ""
            if isinstance(result.mol_block, ItemFailure):
                error = f"{result.mol_block.code}: {result.mol_block.message}"
        own = [_text(cell) for cell in record.passthrough[self._is_sdf :]]
        fields = zip(self._names, [*own, smiles, error, *predicted], strict=False)
        data = "".join(f">  <{name}>\n{value}\n\n" for name, value in fields if value)
        return f"{self._block(record, result)}{data}$$$$\n"

    def _block(self, record: Record, result: Result) -> str:
        if isinstance(record.source, MolBlock):
            block = record.source.text
            return block if _END in block.splitlines() else f"{block}{_END}\n"
        made = result.mol_block if isinstance(result, Answer) else None
        block = made if isinstance(made, str) else _EMPTY
        column = 0 if self._is_sdf else self.file.id_column
        name = "" if column is None else _text(record.passthrough[column])
        _, _, rest = block.partition("\n")
        return f"{' '.join(name.split())}\n{rest}"


def _text(cell: object) -> str:
    """Return a cell as the value of a data field, which a blank line or `$$$$` would end."""
    lines = [line for line in str("" if cell is None else cell).splitlines() if line.strip()]
    return "\n".join(f" {line}" if line.startswith((">", "$$$$")) else line for line in lines)
