"""One shard: a file of molecules in, a Parquet file of predictions out, whole or not at all."""

import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version

from models.errors import ConfigError, GMergingError, InvalidInputError
from service.bulk.flow import next_group
from service.core.answer import Result
from service.core.memory import trim_malloc
from service.core.reading import ItemFailure, Record
from service.formats.arrow import open_parquet
from service.formats.kinds import InputKind, kind_by_name
from service.formats.molecule_files import FileFormat, MoleculeFile, decompressed, open_file
from service.shards.answering import (
    CHUNK_CPU_SECONDS,
    CHUNK_ROWS,
    ROW_CPU_SECONDS,
    Answering,
    cpu_limit,
)
from service.shards.isolation import crashes
from service.shards.made import Made, Shard, depends_on, made_of
from service.shards.note import Note, clear, note_of, remove_note, write_note
from service.shards.places import files_at
from service.shards.request import ScreenModel, ScreenRequest
from service.shards.table import Counts, ResultTables, ShardWriter, TopRows

CRASHED = "crashed"
"""Code of a molecule that ended the process which read or predicted it, twice."""
_NAMES_OF_IDS = ("id", "name")
"""Columns that hold the ids of records if none is named."""

Report = Callable[[int], None]
"""Called with the number of rows that are answered, before the first chunk and after every one."""


class ShardExistsError(ConfigError):
    """The output of a shard is there and is of another model, of other settings, or no shard."""

    code = "output_exists"


class Screener:
    """Screens shards with one loaded model."""

    def __init__(self, model: ScreenModel, *, replace: bool = False) -> None:
        """Load the model.

        Args:
            model: what answers.
            replace: whether outputs of other settings, or of another model, are replaced.

        Raises:
            GMergingError: the model, or what it is asked for, cannot be used.
        """
        self._model, self._replace = model, replace
        self._answering = Answering(model)
        self._tables = ResultTables(model.request, self._answering.info.task_infos)

    def __call__(self, shard: Shard, report: Report = lambda rows: None) -> Made:
        """Screen a shard, unless its output is there and its input has not changed since.

        Raises:
            InvalidInputError: the input cannot be read.
            ShardExistsError: there is another output.
            OSError: a file cannot be read or written.
        """
        files, output = files_at(shard.output), shard.output
        info, request = self._answering.info, self._model.request
        identity = files_at(shard.address).identity(shard.address)
        expected = depends_on(shard, identity, info.digest, request)
        made = made_of(output)
        if made is not None:
            if made.is_of(expected):
                clear(output)
                return made
            if not (self._replace or made.has_settings_of(expected)):
                raise ShardExistsError(
                    f"got {output}, which is {made.described}, expected nothing there, the same "
                    "model and settings, or --replace"
                )
        before = note_of(output)
        # Of an attempt on another machine one cannot know for a while whether it has died: a chunk
        # that is looked through for nothing costs seconds.
        suspects = () if before is None else before.all_suspects
        if before is not None and not before.is_alive:
            files.remove(before.temporary)
        with files.writing(output) as writing:
            note = Note.new(writing.temporary, suspects)
            write_note(output, note)
            writer = ShardWriter(writing.path, self._tables.schema)
            try:
                counts = self._rows(shard, note, writer, report)
                about = {
                    **expected,
                    "model": {"name": info.name, "version": info.version, "digest": info.digest},
                    "rows": counts.rows,
                    "kept": counts.kept,
                    "failed": dict(counts.failed.most_common()),
                    "version": version("g-merging"),
                }
                writer.finish(about)
            except BaseException as error:
                writer.close()
                # Whoever wants no more reports may have begun anew: then the note is not ours.
                if isinstance(error, Exception) and not isinstance(error, BrokenPipeError):
                    note.error = said(error)
                    write_note(output, note)
                raise
            if files_at(shard.address).identity(shard.address) != identity:
                note.chunk, note.error = None, "the input changed while it was read"
                write_note(output, note)
                raise InvalidInputError(f"got {shard.address}, which changed while it was read")
        remove_note(output)
        return Made(about, skipped=False)

    def _rows(self, shard: Shard, note: Note, writer: ShardWriter, report: Report) -> Counts:
        """Answer all rows of a shard and write those that are kept."""
        top = self._model.request.top
        best = None if top is None else TopRows(top, self._tables.schema)
        failed: Counter[str] = Counter()
        report(0)
        with _opened(shard, self._model.request) as file:
            for index, (ids, records) in enumerate(_chunks(file, shard.name)):
                note.chunk = index
                write_note(shard.output, note)
                results = self._results(records, index in note.suspects)
                note.chunk = None
                note.rows += len(records)
                failed.update(r.code for r in results if isinstance(r, ItemFailure))
                (writer if best is None else best).add(self._tables.table(ids, results))
                report(note.rows)
                trim_malloc()  # no measurable part of the CPU time of a chunk
        if best is not None:
            writer.add(best.table())
        return Counts(note.rows, writer.rows, failed)

    def _results(self, records: Sequence[Record], is_suspect: bool) -> list[Result]:
        """Answer a chunk. One that a process has died in is first looked through for records that
        end their process; their error is `crashed`."""
        threads = self._answering.settings.threads
        seconds = CHUNK_CPU_SECONDS
        if is_suspect:
            found = crashes(self._model, records)
            records = [
                Record(ItemFailure(CRASHED, found[k]), record.passthrough) if k in found else record
                for k, record in enumerate(records)
            ]
            seconds = ROW_CPU_SECONDS * max(1, len(records))
        with cpu_limit(seconds * threads):
            return self._answering(records)


def said(error: Exception) -> str:
    """Return an exception in one line; one that is no refusal with the place that raised it."""
    if isinstance(error, GMergingError | OSError):
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {place.filename}:{place.lineno}: {error}".replace("\n", " ")


@contextmanager
def _opened(shard: Shard, request: ScreenRequest) -> Iterator[MoleculeFile]:
    kind: InputKind = request.input_format or kind_by_name(shard.address)
    with files_at(shard.address).opened(shard.address) as stream:
        if kind == "parquet":
            yield open_parquet(stream, request.smiles_column, request.id_field)
            return
        with decompressed(stream, sys.maxsize) as plain:
            yield open_file(plain, FileFormat(kind, request.smiles_column, request.id_field))


def _chunks(file: MoleculeFile, name: str) -> Iterator[tuple[list[str], list[Record]]]:
    """Read a file in chunks, with the ids of its records: of the named column, else of one called
    id or name; `file:row` (rows count from 0) for those without."""
    column = file.id_column
    if column is None:
        lower = [known.strip().lower() for known in file.columns]
        column = next((lower.index(known) for known in _NAMES_OF_IDS if known in lower), None)
    row = 0
    while records := next_group(file.records, CHUNK_ROWS):
        ids = []
        for k, record in enumerate(records, row):
            cell = None if column is None else record.passthrough[column]
            text = "" if cell is None else str(cell).strip()
            ids.append(text or f"{name}:{k}")
        row += len(records)
        yield ids, records
