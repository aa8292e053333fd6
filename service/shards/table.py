"""The rows of a shard as Parquet: ids, SMILES, errors and a column of numbers for every label."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import InvalidInputError
from models.task import TaskInfo
from service.core.answer import Answer, Result
from service.core.reading import ItemFailure
from service.formats.arrow import arrow, encodable
from service.shards.made import METADATA
from service.shards.request import ScreenRequest, Top

_GROUP_BYTES = 32 * 1024**2
_GROUP_ROWS = 64 * 1024
_PROBABILITIES = ("multilabel", "multiclass")


@dataclass
class Counts:
    """Numbers of rows.

    Attributes:
        rows: of the input.
        kept: of the output.
        failed: of the input with an error, by code.
    """

    rows: int
    kept: int
    failed: Counter[str]


class ResultTables:
    """Makes tables of the answers to chunks of records."""

    def __init__(self, request: ScreenRequest, infos: Mapping[str, TaskInfo]) -> None:
        """Prepare the columns.

        Args:
            request: which labels, and which rows.
            infos: descriptions of the model's tasks.
        """
        pa = arrow()
        self._request = request
        columns = [(task, label) for task in request.tasks for label in infos[task].labels]
        names = [f"{task}.{label}" for task, label in columns]
        self._positions = [names.index(label) for label in request.labels]
        self._conditions = [
            (request.labels.index(found.label), found) for found in request.conditions
        ]
        fields = [pa.field("id", pa.string())]
        fields += [pa.field("gmerging_smiles", pa.string())] if request.smiles else []
        fields.append(pa.field("gmerging_error", pa.string()))
        for position in self._positions:
            task, label = columns[position]
            half = request.floats == "float16" and infos[task].target in _PROBABILITIES
            unit = infos[task].unit(label)
            fields.append(
                pa.field(
                    names[position],
                    pa.float16() if half else pa.float32(),
                    metadata={"unit": unit} if unit else None,
                )
            )
        self.schema = pa.schema(fields)

    def table(self, ids: Sequence[str], results: Sequence[Result]) -> Any:
        """Return the table of the rows that fulfil the conditions, in their order.

        Args:
            ids: of the records.
            results: the answer to each, or its error. A row with an error fulfils no condition.
        """
        pa = arrow()
        good = [k for k, result in enumerate(results) if isinstance(result, Answer)]
        numbers = self._numbers([result for result in results if isinstance(result, Answer)])
        rows: list[int] | range = range(len(results))
        if self._conditions:
            holds = np.ones(len(good), dtype=bool)
            for column, found in self._conditions:
                holds &= found.holds(numbers[:, column], found.value)
            numbers = numbers[holds]
            rows = [k for k, hold in zip(good, holds, strict=True) if hold]
        kept = [results[k] for k in rows]
        columns = [pa.array([encodable(ids[k]) for k in rows], pa.string())]
        if self._request.smiles:
            smiles = [result.smiles if isinstance(result, Answer) else None for result in kept]
            columns.append(pa.array(smiles, pa.string()))
        errors = [
            encodable(f"{result.code}: {result.message}")
            if isinstance(result, ItemFailure)
            else None
            for result in kept
        ]
        columns.append(pa.array(errors, pa.string()))
        left = iter(range(len(numbers)))
        take = None
        if len(numbers) < len(kept):
            take = pa.array([next(left) if error is None else None for error in errors], pa.int64())
        for column, field in zip(numbers.T, list(self.schema)[len(columns) :], strict=True):
            values = pa.array(column.astype(field.type.to_pandas_dtype()), field.type)
            columns.append(values if take is None else values.take(take))
        return pa.table(columns, schema=self.schema)

    def _numbers(self, answers: Sequence[Answer]) -> NDArray[np.float32]:
        """Return the values of the labels, (answers, labels)."""
        if not answers:
            return np.empty((0, len(self._positions)), dtype=np.float32)
        blocks = [
            np.stack([answer.tasks[task].values for answer in answers])
            for task in self._request.tasks
        ]
        values = np.concatenate(blocks, axis=1)[:, self._positions]
        return values.astype(np.float32)


class TopRows:
    """The best rows of all tables added so far; of equal ones, the first."""

    def __init__(self, top: Top, schema: Any) -> None:
        self._top, self._schema = top, schema
        self._tables: list[Any] = []
        self._waiting = 0

    def add(self, table: Any) -> None:
        """Add the next rows."""
        self._tables.append(table)
        self._waiting += table.num_rows
        if self._waiting > 2 * self._top.count + _GROUP_ROWS // 8:
            self.table()

    def table(self) -> Any:
        """Return the best rows, in the order of the input."""
        pa = arrow()
        rows = pa.concat_tables([self._schema.empty_table(), *self._tables]).combine_chunks()
        values = rows.column(self._top.label).to_numpy(zero_copy_only=False).astype(np.float64)
        # Rows with an error have no value, and come last in any order.
        order = np.argsort(values if self._top.lowest else -values, kind="stable")
        best = order[: self._top.count]
        best = np.sort(best[~np.isnan(values[best])])
        found = rows.take(pa.array(best))
        self._tables, self._waiting = [found], 0
        return found


class ShardWriter:
    """Writes tables to a Parquet file, in groups of rows that fit into memory."""

    def __init__(self, path: Path, schema: Any) -> None:
        package = arrow()
        self._writer = package.parquet.ParquetWriter(
            path, schema, compression="zstd", use_dictionary=["gmerging_error"]
        )
        self._tables: list[Any] = []
        self._waiting = 0
        self.rows = 0

    def add(self, table: Any) -> None:
        """Add the next rows."""
        self.rows += table.num_rows
        self._waiting += table.num_rows
        self._tables.append(table)
        bytes_waiting = sum(waiting.nbytes for waiting in self._tables)
        if self._waiting >= _GROUP_ROWS or bytes_waiting > _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(arrow().concat_tables(self._tables))
        self._tables, self._waiting = [], 0

    def finish(self, about: Mapping[str, Any]) -> None:
        """Write what is left, and what the shard says of itself."""
        self._flush()
        self._writer.add_key_value_metadata({METADATA: json.dumps(about)})
        self._writer.close()

    def close(self) -> None:
        """Close the file; without `finish` before, it is not complete."""
        self._writer.close()


def check_labels(request: ScreenRequest, infos: Mapping[str, TaskInfo]) -> None:
    """Raise InvalidInputError if a model does not have the labels of a request."""
    known = {f"{task}.{label}" for task in request.tasks for label in infos[task].labels}
    if missing := [label for label in request.labels if label not in known]:
        raise InvalidInputError(f"got label {missing[0]!a}, expected one of the model's")
