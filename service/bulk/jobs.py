"""Long files as jobs: kept on disk with what has been answered so far, so that they outlast a
restart.

A job is a row of an SQLite table and two files, what was sent and what is answered. The row says
how many bytes of the answer are good: whatever lies behind them is cut off before a job goes on.
Several workers share the table; one that takes a job holds it by a lease, which it renews as it
goes on, so that the jobs of a worker that died are taken over by others.
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
from models.experts.unified import Routing
from service.core.engine import PredictionQuery
from service.formats.molecule_files import FileFormat, FileKind, OutputKind

JobState = Literal["queued", "running", "done", "failed", "cancelled"]
_LEASE_SECONDS = 30.0


@dataclass(frozen=True)
class Job:
    """A job as it stands.

    Attributes:
        id: 32 hexadecimal digits.
        client: whose it is, by name of the key; empty without keys.
        state: see `JobState`.
        created, finished: seconds since 1970; `finished` is 0 until then.
        kind, smiles_column, id_field: how to read what was sent, by the column that was chosen.
        encoding: of what was sent; None for a job of an older version.
        model, tasks, routing, output: what is asked, and in what form.
        digest: of the artifact that answers; empty until it has begun.
        total, answered, failed: records; `total` is 0 until they are counted.
        result_bytes: how much of the answer is good.
        error: why it failed.
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
    output: OutputKind
    digest: str
    total: int
    answered: int
    failed: int
    result_bytes: int
    error: str

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ("done", "failed", "cancelled")


_COLUMNS = tuple(each.name for each in fields(Job))
_NEW_COLUMNS = ("id_field", "encoding")  # that folders of older versions do not have


def _add_missing_columns(table: sqlite3.Connection) -> None:
    """A job that an older version began starts again: it wrote other columns."""
    table.execute("BEGIN IMMEDIATE")  # of several workers, one
    known = {row[1] for row in table.execute("PRAGMA table_info(jobs)")}
    missing = [name for name in _NEW_COLUMNS if name not in known]
    for name in missing:
        table.execute(f"ALTER TABLE jobs ADD COLUMN {name} TEXT")
    if missing:
        table.execute("UPDATE jobs SET digest = '' WHERE finished = 0")


class JobStore:
    """Jobs on disk. Everything here blocks, for milliseconds."""

    def __init__(self, folder: Path, keep_seconds: float) -> None:
        """Open the folder, or make it.

        Args:
            folder: of the table and the files.
            keep_seconds: how long what is over is kept.

        Raises:
            ConfigError: the folder cannot be made, or not be written.
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
        """What was sent."""
        return self._folder / f"{job.id}.input"

    def result_path(self, job: Job) -> Path:
        """What is answered."""
        return self._folder / f"{job.id}.result"

    def create(
        self,
        content: BinaryIO,
        client: str,
        file_format: FileFormat,
        query: PredictionQuery,
        output: OutputKind,
        encoding: str | None = None,
    ) -> Job:
        """Keep a file, unpacked, as a new job."""
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
            output=output,
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
            orjson.dumps(job.tasks).decode() if name == "tasks" else getattr(job, name)
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
        """A client's job."""
        with self._table() as table:
            return next(self._jobs(table, "WHERE id = ? AND client = ?", job_id, client), None)

    def all_of(self, client: str) -> list[Job]:
        """A client's jobs, the newest first."""
        with self._table() as table:
            return list(self._jobs(table, "WHERE client = ? ORDER BY created DESC", client))

    def waiting(self) -> int:
        """How many jobs are not over."""
        with self._table() as table:
            return int(table.execute("SELECT count(*) FROM jobs WHERE finished = 0").fetchone()[0])

    def claim(self, holder: str) -> Job | None:
        """The oldest job that nobody works on, if there is one; it is the holder's as long as it
        renews the lease by `save`."""
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
        """Note how far a job has come, and renew its lease; False if it is not the holder's any
        more, or was cancelled."""
        with self._table() as table:
            changes = "".join(f", {name} = ?" for name in values)
            done = table.execute(
                f"UPDATE jobs SET lease = ?{changes} WHERE id = ? AND holder = ? AND state ="
                " 'running'",
                (time.time() + _LEASE_SECONDS, *values.values(), job_id, holder),
            )
            return done.rowcount == 1

    def release(self, job_id: str, holder: str) -> None:
        """Let another worker, or this one after a restart, go on with it."""
        with self._table() as table:
            table.execute(
                "UPDATE jobs SET state = 'queued', lease = 0 WHERE id = ? AND holder = ? AND state"
                " = 'running'",
                (job_id, holder),
            )

    def cancel(self, job: Job) -> bool:
        """Stop a job; one that is over is forgotten. Whether it was stopped."""
        with self._table() as table:
            stopped = table.execute(
                "UPDATE jobs SET state = 'cancelled', finished = ? WHERE id = ? AND finished = 0",
                (time.time(), job.id),
            )
            if not stopped.rowcount:
                table.execute("DELETE FROM jobs WHERE id = ?", (job.id,))
        self._remove_files(job)
        return stopped.rowcount == 1

    def forget_old(self) -> None:
        """Remove what has been over for long enough."""
        with self._table() as table:
            old = list(
                self._jobs(
                    table, "WHERE finished > 0 AND finished < ?", time.time() - self._keep_seconds
                )
            )
            table.executemany("DELETE FROM jobs WHERE id = ?", [(job.id,) for job in old])
        for job in old:
            self._remove_files(job)

    def _remove_files(self, job: Job) -> None:
        for path in (self.input_path(job), self.result_path(job)):
            path.unlink(missing_ok=True)

    @contextmanager
    def _table(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own for every use: they are called on many threads."""
        with (
            closing(sqlite3.connect(self._folder / "jobs.sqlite", timeout=30)) as connection,
            connection,
        ):
            yield connection

    @staticmethod
    def _jobs(table: sqlite3.Connection, condition: str, *values: object) -> Iterator[Job]:
        for row in table.execute(f"SELECT {', '.join(_COLUMNS)} FROM jobs {condition}", values):
            known = dict(zip(_COLUMNS, row, strict=True))
            yield Job(**{**known, "tasks": tuple(orjson.loads(known["tasks"]))})
