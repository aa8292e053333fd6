"""Jobs on disk, which survive a restart with the answers they already have.

A job is a row of an SQLite table and two files: the input and the result. The row holds the number
of valid bytes of the result; whatever lies behind them is cut off before a job is resumed. Several
workers share the table. A worker holds a job by a lease, which it renews with every `save`, so that
the jobs of a worker that died are taken over by others.
"""

import shutil
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO, Literal

import orjson

from models.errors import ConfigError
from models.experts.combination import ExpertChoice
from models.experts.unified import Routing
from service.core.engine import PredictionQuery
from service.formats.kinds import FileKind
from service.formats.molecule_files import FileFormat, OutputKind
from service.schemas import RowExplanation

JobState = Literal["queued", "running", "done", "failed", "cancelled"]
_LEASE_SECONDS = 30.0


@dataclass(frozen=True)
class Job:
    """State of a job.

    Attributes:
        id: 32 hexadecimal digits.
        client: name of the key's holder; empty without keys.
        state: see `JobState`.
        created: seconds since 1970.
        finished: seconds since 1970; 0 until the job has ended.
        kind: kind of the file.
        smiles_column: column of the molecules; None for an SDF.
        id_field: column or data field of the ids, if there is one.
        encoding: text encoding of the file; None for a job of an older version.
        model: name of the model.
        tasks: task names, in the model's order.
        routing: how experts are mixed.
        experts: the experts that answer; None for the default ones.
        output: form of the result.
        explain: explanations of the rows.
        escape_formulas: see `service.formats.molecule_files.ResultWriter`.
        digest: digest of the artifact that answers; empty until the job has begun.
        total: number of records; 0 until they are counted.
        answered: number of records answered so far.
        failed: number of those with an error.
        result_bytes: number of valid bytes of the result.
        error: reason of a failed job; empty otherwise.
    """

    id: str
    client: str
    state: JobState
    created: float
    finished: float
    kind: FileKind
    smiles_column: str | None
    id_field: str | None
    encoding: str | None
    model: str
    tasks: tuple[str, ...]
    routing: Routing
    experts: ExpertChoice | None
    output: OutputKind
    explain: tuple[RowExplanation, ...]
    escape_formulas: bool
    digest: str
    total: int
    answered: int
    failed: int
    result_bytes: int
    error: str


_LISTS = ("tasks", "explain")
_COLUMNS = tuple(column.name for column in fields(Job))
_NEW_COLUMNS = (
    "id_field",
    "encoding",
    "experts",
    "explain",
    "escape_formulas",
)  # missing in tables of older versions


def _add_missing_columns(table: sqlite3.Connection) -> None:
    """Add the columns that a table of an older version lacks.

    Its unfinished jobs start over, because they may have written other columns.
    """
    table.execute("BEGIN IMMEDIATE")  # several workers may start at once
    known = {row[1] for row in table.execute("PRAGMA table_info(jobs)")}
    missing = [name for name in _NEW_COLUMNS if name not in known]
    for name in missing:
        table.execute(f"ALTER TABLE jobs ADD COLUMN {name} TEXT")
    if missing:
        table.execute("UPDATE jobs SET digest = '' WHERE finished = 0")


class JobStore:
    """Table and files of the jobs in a folder. Every method blocks, for milliseconds."""

    def __init__(self, folder: Path, keep_seconds: float) -> None:
        """Open the folder, or create it.

        Args:
            folder: folder of the table and the files.
            keep_seconds: time for which ended jobs are kept.

        Raises:
            ConfigError: the folder cannot be created or written.
        """
        self._folder, self._keep_seconds = folder, keep_seconds
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._make_table()
        except (OSError, sqlite3.OperationalError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            expected = "expected a folder that can be written"
            raise ConfigError(f"GMERGING_JOBS: got {str(folder)!r}: {reason}, {expected}") from None

    def _make_table(self) -> None:
        with self._table() as table:
            table.execute("PRAGMA journal_mode = WAL")
            table.execute(
                "CREATE TABLE IF NOT EXISTS jobs (id TEXT PRIMARY KEY, client TEXT, state TEXT,"
                " created REAL, finished REAL, kind TEXT, smiles_column TEXT, model TEXT, tasks"
                " TEXT, routing TEXT, output TEXT, digest TEXT, total INTEGER, answered INTEGER,"
                " failed INTEGER, result_bytes INTEGER, error TEXT, holder TEXT DEFAULT '', lease"
                " REAL DEFAULT 0)"
            )
            _add_missing_columns(table)

    def input_path(self, job: Job) -> Path:
        """Return the path of a job's input file."""
        return self._folder / f"{job.id}.input"

    def result_path(self, job: Job) -> Path:
        """Return the path of a job's result file."""
        return self._folder / f"{job.id}.result"

    def create(
        self,
        content: BinaryIO,
        client: str,
        file_format: FileFormat,
        query: PredictionQuery,
        output: OutputKind,
        encoding: str | None = None,
        explain: tuple[RowExplanation, ...] = (),
        escape_formulas: bool = False,
    ) -> Job:
        """Store a file as a new job.

        Args:
            content: the file, decompressed.
            client: name of the key's holder; empty without keys.
            file_format: how to read the file.
            query: model, tasks, routing and experts.
            output: form of the result.
            encoding: text encoding of the file, as it was detected.
            explain, escape_formulas: see `Job`.
        """
        job = Job(
            id=uuid.uuid4().hex,
            client=client,
            state="queued",
            created=time.time(),
            finished=0.0,
            kind=file_format.kind,
            smiles_column=file_format.smiles_column,
            id_field=file_format.id_field,
            encoding=encoding,
            model=query.model,
            tasks=query.tasks,
            routing=query.routing,
            experts=query.experts,
            output=output,
            explain=explain,
            escape_formulas=escape_formulas,
            digest="",
            total=0,
            answered=0,
            failed=0,
            result_bytes=0,
            error="",
        )
        content.seek(0)
        with self.input_path(job).open("wb") as copy:
            shutil.copyfileobj(content, copy)
        values = [
            orjson.dumps(getattr(job, name)).decode() if name in _LISTS else getattr(job, name)
            for name in _COLUMNS
        ]
        with self._table() as table:
            table.execute(
                f"INSERT INTO jobs ({', '.join(_COLUMNS)}) VALUES"
                f" ({', '.join('?' * len(_COLUMNS))})",
                values,
            )
        return job

    def get(self, job_id: str, client: str) -> Job | None:
        """Return a job of a client; None if the client has no such job."""
        with self._table() as table:
            return next(self._jobs(table, "WHERE id = ? AND client = ?", job_id, client), None)

    def of_client(self, client: str) -> list[Job]:
        """Return the jobs of a client, the newest first."""
        with self._table() as table:
            return list(self._jobs(table, "WHERE client = ? ORDER BY created DESC", client))

    def waiting(self) -> int:
        """Return the number of jobs that are queued or running."""
        with self._table() as table:
            return int(table.execute("SELECT count(*) FROM jobs WHERE finished = 0").fetchone()[0])

    def claim(self, holder: str) -> Job | None:
        """Take the oldest job that no worker holds; None if there is none.

        The holder keeps it for 30 s after every `save`.
        """
        now = time.time()
        with self._table() as table:
            row = table.execute(
                "UPDATE jobs SET state = 'running', holder = ?, lease = ? WHERE id = (SELECT id"
                " FROM jobs WHERE state = 'queued' OR (state = 'running' AND lease < ?) ORDER BY"
                " created LIMIT 1) RETURNING id",
                (holder, now + _LEASE_SECONDS, now),
            ).fetchone()
            return None if row is None else next(self._jobs(table, "WHERE id = ?", row[0]), None)

    def save(self, job_id: str, holder: str, **values: object) -> bool:
        """Save columns of a job, and renew its lease.

        Args:
            job_id: the job.
            holder: the worker that claimed it.
            values: columns to set.

        Returns:
            Whether the job is still the holder's; if not, nothing was saved.
        """
        with self._table() as table:
            changes = "".join(f", {name} = ?" for name in values)
            done = table.execute(
                f"UPDATE jobs SET lease = ?{changes} WHERE id = ? AND holder = ? AND state ="
                " 'running'",
                (time.time() + _LEASE_SECONDS, *values.values(), job_id, holder),
            )
            return done.rowcount == 1

    def release(self, job_id: str, holder: str) -> None:
        """Put a held job back into the queue, for any worker to resume."""
        with self._table() as table:
            table.execute(
                "UPDATE jobs SET state = 'queued', lease = 0 WHERE id = ? AND holder = ? AND state"
                " = 'running'",
                (job_id, holder),
            )

    def cancel(self, job: Job) -> bool:
        """Cancel a job, or delete one that has ended; its files are deleted.

        Returns:
            Whether the job was still queued or running.
        """
        with self._table() as table:
            stopped = table.execute(
                "UPDATE jobs SET state = 'cancelled', finished = ? WHERE id = ? AND finished = 0",
                (time.time(), job.id),
            )
            if not stopped.rowcount:
                table.execute("DELETE FROM jobs WHERE id = ?", (job.id,))
        self._remove_files(job)
        return stopped.rowcount == 1

    def delete_expired(self) -> None:
        """Delete the jobs that ended more than `keep_seconds` ago."""
        oldest = time.time() - self._keep_seconds
        with self._table() as table:
            old = list(self._jobs(table, "WHERE finished > 0 AND finished < ?", oldest))
            table.executemany("DELETE FROM jobs WHERE id = ?", [(job.id,) for job in old])
        for job in old:
            self._remove_files(job)

    def _remove_files(self, job: Job) -> None:
        for path in (self.input_path(job), self.result_path(job)):
            path.unlink(missing_ok=True)

    @contextmanager
    def _table(self) -> Iterator[sqlite3.Connection]:
        """Open a connection for one use, because methods run on many threads."""
        path = self._folder / "jobs.sqlite"
        with closing(sqlite3.connect(path, timeout=30)) as connection, connection:
            yield connection

    @staticmethod
    def _jobs(table: sqlite3.Connection, condition: str, *parameters: object) -> Iterator[Job]:
        for row in table.execute(f"SELECT {', '.join(_COLUMNS)} FROM jobs {condition}", parameters):
            values = dict(zip(_COLUMNS, row, strict=True))
            lists = {name: tuple(orjson.loads(values[name] or "[]")) for name in _LISTS}
            flag = bool(int(values["escape_formulas"] or 0))  # stored as text
            yield Job(**{**values, **lists, "escape_formulas": flag})
