"""Parquet: molecules from columns of a Parquet file, and predictions as typed columns.

Rows are written as messages of an Arrow stream, which unlike Parquet can be cut off after any of
them and go on later; `to_parquet` makes the Parquet file of the whole stream.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from models.data.tables import SAMPLE, Row, molecule_column, unique_names
from models.errors import InvalidInputError
from models.extras import optional_package
from service.core.answer import Answer, Result
from service.core.engine import EngineInfo
from service.core.explaining import NOTHING, Explained
from service.core.reading import ItemFailure, Record
from service.formats.answers import number_columns, number_table
from service.formats.explanation_columns import (
    ALERTS,
    alert_cells,
    percentile_columns,
    percentile_table,
)
from service.formats.molecule_files import MoleculeFile, id_column

PARQUET_MAGIC = b"PAR1"
_READ_ROWS, _READ_BYTES = 1024, 1024**2
_ROW_GROUP_BYTES = 64 * 1024**2


def arrow() -> Any:
    """Import and return pyarrow. Raises MissingPackageError: it is not installed."""
    package = optional_package("pyarrow", "Parquet", "predict")
    optional_package("pyarrow.parquet", "Parquet", "predict")
    # Its own pool kept 30 to 70 MiB of what a file of a million rows had taken and freed.
    package.set_memory_pool(package.system_memory_pool())
    return package


def open_parquet(
    stream: BinaryIO, smiles_column: str | None = None, id_field: str | None = None
) -> MoleculeFile:
    """Open a Parquet file of molecules. Its columns keep their types.

    Raises:
        InvalidInputError: not a Parquet file, no column of molecules or not the named one, or that
            column does not hold text.
        MissingPackageError: pyarrow is not installed.
    """
    pa = arrow()
    try:
        # By default a whole group of rows is in memory before its first row.
        file = pa.parquet.ParquetFile(stream, buffer_size=_READ_BYTES, pre_buffer=False)
    except pa.ArrowInvalid as error:
        raise InvalidInputError(f"got no Parquet file ({error}), expected one") from None
    columns = tuple(file.schema_arrow.names)
    rows = _rows(file, columns)
    sample = list(islice(rows, SAMPLE))
    shown = [
        Row(k, k, tuple("" if cell is None else str(cell) for cell in cells), None)
        for k, cells in enumerate(sample, 1)
    ]
    column = molecule_column(columns, shown, smiles_column)
    # A stream would need the dictionary of every group beside its rows.
    types = tuple(
        kind.value_type if pa.types.is_dictionary(kind) else kind
        for kind in file.schema_arrow.types
    )
    kind = types[column]
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise InvalidInputError(f"got column {columns[column]!a} of {kind}, expected text")
    records = (Record(cells[column] or "", cells) for cells in chain(sample, rows))
    names = unique_names(columns)
    ids = id_column(id_field, columns)
    return MoleculeFile(columns, records, "utf-8", names[column], ids, types)


def _rows(file: Any, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    for batch in file.iter_batches(_READ_ROWS):
        yield from zip(*(batch.column(k).to_pylist() for k in range(len(columns))), strict=True)


@dataclass
class ArrowWriter:
    """Writes predictions as messages of an Arrow stream, one for a group of records.

    The columns are those of CSV, under unique names: the id if there is one, the columns of the
    file (text, or as a Parquet file has them), the canonical SMILES and the error (text), and a
    float64 for each label; null where there is an error.

    Attributes:
        file: the input file.
        info: description of the model.
        tasks: tasks to write, in order.
        explained: explanations of the rows: float64 percentiles and the text of alerts.
        answered: number of records written so far.
        failed: number of records written with an error.
    """

    file: MoleculeFile
    info: EngineInfo
    tasks: tuple[str, ...]
    explained: Explained = NOTHING
    answered: int = 0
    failed: int = 0
    _schema: Any = field(init=False)

    def __post_init__(self) -> None:
        pa = arrow()
        text = [pa.string()]
        types = list(self.file.types or text * len(self.file.columns))
        labels = [*number_columns(self.info, self.tasks), *percentile_columns(self.explained)]
        alerts = [ALERTS] if self._with_alerts else []
        ids = [] if self.file.id_column is None else ["id"]
        id_types = [] if self.file.id_column is None else [types[self.file.id_column]]
        named = [*ids, *self.file.columns, "gmerging_smiles", "gmerging_error", *labels, *alerts]
        numbers = [pa.float64()] * len(labels)
        kinds = [*id_types, *types, *text, *text, *numbers, *text * len(alerts)]
        self._schema = pa.schema(list(zip(unique_names(named), kinds, strict=True)))

    @property
    def _with_alerts(self) -> bool:
        return "alerts" in self.explained.names

    def header(self) -> bytes:
        """Return the message with the schema."""
        return self._schema.serialize().to_pybytes()  # type: ignore[no-any-return]

    def rows(self, answered: Sequence[tuple[Record, Result]]) -> bytes:
        """Return the message with one row per record."""
        pa = arrow()
        cells = [list(column) for column in zip(*(r.passthrough for r, _ in answered), strict=True)]
        if self.file.id_column is not None:
            cells.insert(0, cells[self.file.id_column])
        good = [result for _, result in answered if isinstance(result, Answer)]
        cells.append([r.smiles if isinstance(r, Answer) else None for _, r in answered])
        failures = [r if isinstance(r, ItemFailure) else None for _, r in answered]
        cells.append([None if r is None else f"{r.code}: {r.message}" for r in failures])
        kinds = self._schema.types
        arrays = [
            pa.array(map(encodable, column), kind)
            for column, kind in zip(cells, kinds[: len(cells)], strict=True)
        ]
        if good:
            rows = iter(range(len(good)))
            take = pa.array([None if r is not None else next(rows) for r in failures], pa.int64())
            tables = [number_table(good, self.info, self.tasks)]
            tables += [percentile_table(good, self.explained)]
            numbers = [pa.array(column, from_pandas=True) for table in tables for column in table.T]
            alerts = [pa.array(alert_cells(good), pa.string())] if self._with_alerts else []
            arrays += [column.take(take) for column in [*numbers, *alerts]]
        else:
            arrays += [pa.nulls(len(answered), kind) for kind in kinds[len(cells) :]]
        self.answered += len(answered)
        self.failed += len(answered) - len(good)
        batch = pa.record_batch(arrays, schema=self._schema)
        return batch.serialize().to_pybytes()  # type: ignore[no-any-return]


def encodable(cell: Any) -> Any:
    """Replace what UTF-8 cannot encode in text, as files of text have it."""
    return cell.encode("utf-8", "replace").decode() if isinstance(cell, str) else cell


def to_parquet(stream: Path, output: Path) -> None:
    """Write the messages of a finished Arrow stream as a Parquet file, with little in memory."""
    pa = arrow()
    with stream.open("rb") as source:
        reader = pa.ipc.open_stream(source)
        with pa.parquet.ParquetWriter(output, reader.schema, compression="zstd") as writer:
            waiting: list[Any] = []
            for batch in reader:
                waiting.append(batch)
                if sum(held.nbytes for held in waiting) > _ROW_GROUP_BYTES:
                    writer.write_table(pa.Table.from_batches(waiting))
                    waiting = []
            if waiting:
                writer.write_table(pa.Table.from_batches(waiting))
