"""Long files as jobs: kept on disk with what has been answered so far, so that they outlast a restart.

A job is a row of an SQLite table and two files, what was sent and what is answered. The row says how many bytes of the answer are good: whatever lies
behind them is cut off before a job goes on. Several workers share the table; one that takes a job holds it by a lease, which it renews as it goes on,
so that the jobs of a worker that died are taken over by others.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal

import orjson

from models.errors import GMergingError, UnknownTaskError
from models.unified import Routing
from service.batcher import QueueClosedError
from service.files import FileFormat, FileKind, MoleculeFile, OutputKind, ResultWriter, open_file
from service.metrics import Metrics
from service.pipeline import Pipeline, Question
from service.registry import ModelRegistry, UnknownModelError
from service.security import KeyRing
from service.streams import GROUP, Answerer, Record, in_order

log = logging.getLogger(__name__)

JobState = Literal["queued", "running", "done", "failed", "cancelled"]

_LEASE_SECONDS = 30.0
_SAVE_SECONDS = 1.0
_LOOK_SECONDS = 1.0
_WINDOW = 2  # groups of one job that are under way: little, for nobody waits for it as for a request


@dataclass(frozen=True)
class Job:
    """A job as it stands.

    Attributes:
        id: 32 hexadecimal digits.
        client: whose it is, by name of the key; empty without keys.
        state: see `JobState`.
        created, finished: seconds since 1970; `finished` is 0 until then.
        kind, smiles_column: how to read what was sent.
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


class JobStore:
    """Jobs on disk. Everything here blocks, for milliseconds."""

    def __init__(self, folder: Path, keep_seconds: float) -> None:
        """Open the folder, or make it.

        Args:
            folder: of the table and the files.
            keep_seconds: how long what is over is kept.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._keep_seconds = folder, keep_seconds
        with self._table() as table:
            table.execute("PRAGMA journal_mode = WAL")
            table.execute(
                "CREATE TABLE IF NOT EXISTS jobs (id TEXT PRIMARY KEY, client TEXT, state TEXT, created REAL, finished REAL, kind TEXT, "
                "smiles_column TEXT, model TEXT, tasks TEXT, routing TEXT, output TEXT, digest TEXT, total INTEGER, answered INTEGER, "
                "failed INTEGER, result_bytes INTEGER, error TEXT, holder TEXT DEFAULT '', lease REAL DEFAULT 0)"
            )

    def input_path(self, job: Job) -> Path:
        """What was sent."""
        return self._folder / f"{job.id}.input"

    def result_path(self, job: Job) -> Path:
        """What is answered."""
        return self._folder / f"{job.id}.result"

    def create(self, content: BinaryIO, client: str, file_format: FileFormat, question: Question, output: OutputKind) -> Job:
        """Keep a file as a new job."""
        job = Job(
            id=uuid.uuid4().hex,
            client=client,
            state="queued",
            created=time.time(),
            finished=0.0,
            kind=file_format.kind,
            smiles_column=file_format.smiles_column,
            model=question.model,
            tasks=question.tasks,
            routing=question.routing,
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
        values = [orjson.dumps(job.tasks).decode() if name == "tasks" else getattr(job, name) for name in _COLUMNS]
        with self._table() as table:
            table.execute(f"INSERT INTO jobs ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})", values)
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
        """The oldest job that nobody works on, if there is one; it is the holder's as long as it renews the lease by `save`."""
        now = time.time()
        with self._table() as table:
            row = table.execute(
                "UPDATE jobs SET state = 'running', holder = ?, lease = ? WHERE id = (SELECT id FROM jobs WHERE state = 'queued' "
                "OR (state = 'running' AND lease < ?) ORDER BY created LIMIT 1) RETURNING id",
                (holder, now + _LEASE_SECONDS, now),
            ).fetchone()
            return None if row is None else next(self._jobs(table, "WHERE id = ?", row[0]), None)

    def save(self, job_id: str, holder: str, **values: object) -> bool:
        """Note how far a job has come, and renew its lease; False if it is not the holder's any more, or was cancelled."""
        with self._table() as table:
            changes = "".join(f", {name} = ?" for name in values)
            done = table.execute(
                f"UPDATE jobs SET lease = ?{changes} WHERE id = ? AND holder = ? AND state = 'running'",
                (time.time() + _LEASE_SECONDS, *values.values(), job_id, holder),
            )
            return done.rowcount == 1

    def release(self, job_id: str, holder: str) -> None:
        """Let another worker, or this one after a restart, go on with it."""
        with self._table() as table:
            table.execute("UPDATE jobs SET state = 'queued', lease = 0 WHERE id = ? AND holder = ? AND state = 'running'", (job_id, holder))

    def cancel(self, job: Job) -> bool:
        """Stop a job; one that is over is forgotten. Whether it was stopped."""
        with self._table() as table:
            stopped = table.execute("UPDATE jobs SET state = 'cancelled', finished = ? WHERE id = ? AND finished = 0", (time.time(), job.id))
            if not stopped.rowcount:
                table.execute("DELETE FROM jobs WHERE id = ?", (job.id,))
        self._remove_files(job)
        return stopped.rowcount == 1

    def forget_old(self) -> None:
        """Remove what has been over for long enough."""
        with self._table() as table:
            old = list(self._jobs(table, "WHERE finished > 0 AND finished < ?", time.time() - self._keep_seconds))
            table.executemany("DELETE FROM jobs WHERE id = ?", [(job.id,) for job in old])
        for job in old:
            self._remove_files(job)

    def _remove_files(self, job: Job) -> None:
        for path in (self.input_path(job), self.result_path(job)):
            path.unlink(missing_ok=True)

    @contextmanager
    def _table(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own for every use: they are called on many threads."""
        with closing(sqlite3.connect(self._folder / "jobs.sqlite", timeout=30)) as connection, connection:
            yield connection

    @staticmethod
    def _jobs(table: sqlite3.Connection, condition: str, *values: object) -> Iterator[Job]:
        for row in table.execute(f"SELECT {', '.join(_COLUMNS)} FROM jobs {condition}", values):
            known = dict(zip(_COLUMNS, row, strict=True))
            yield Job(**{**known, "tasks": tuple(orjson.loads(known["tasks"]))})


class JobRunner:
    """Works on jobs, one at a time."""

    def __init__(self, store: JobStore, pipeline: Pipeline, models: ModelRegistry, keys: KeyRing, metrics: Metrics) -> None:
        self._store, self._pipeline, self._models, self._keys, self._metrics = store, pipeline, models, keys, metrics
        self._holder = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._working: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look for jobs."""
        self._working = asyncio.create_task(self._work(), name="jobs")

    async def close(self) -> None:
        """Stop; what was being worked on waits where it is."""
        if self._working is not None:
            self._working.cancel()
            await asyncio.gather(self._working, return_exceptions=True)

    async def _work(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._store.forget_old)
                job = await asyncio.to_thread(self._store.claim, self._holder)
                if job is not None:
                    await self._run(job)
                    continue
            except Exception:  # a full disk today may be an empty one tomorrow
                log.exception("looking for jobs failed")
            await asyncio.sleep(_LOOK_SECONDS)

    async def _run(self, job: Job) -> None:
        try:
            question = Question.of(job.model, self._models.get(job.model), job.tasks, job.routing)
            if question.tasks != job.tasks:
                raise UnknownTaskError(f"got tasks {', '.join(job.tasks)}, of which the model now has {', '.join(question.tasks) or 'none'}")
            client = self._keys.named(job.client)
            await self._answer(job, Answerer(self._pipeline, question, self._keys, client))
        except (asyncio.CancelledError, QueueClosedError):
            await asyncio.shield(asyncio.to_thread(self._store.release, job.id, self._holder))
            raise asyncio.CancelledError from None
        except _TakenAwayError:
            log.info("job %s was cancelled or taken over", job.id)
            current = await asyncio.to_thread(self._store.get, job.id, job.client)
            if current is None or current.state == "cancelled":
                self._metrics.job_ended("cancelled")
        except Exception as error:
            foreseen = isinstance(error, GMergingError | UnknownModelError)
            log.log(logging.WARNING if foreseen else logging.ERROR, "job %s failed: %s", job.id, error, exc_info=not foreseen)
            message = str(error) if foreseen else "the service failed; its log says more under this job's id"
            ended = {"state": "failed", "finished": time.time(), "error": message}
            if await asyncio.to_thread(lambda: self._store.save(job.id, self._holder, **ended)):
                self._metrics.job_ended("failed")

    async def _answer(self, job: Job, answerer: Answerer) -> None:
        """Go through the file from where it was left, and note every second how far that is."""
        info, file_format = answerer.question.engine.info, FileFormat(job.kind, job.smiles_column)
        again = info.digest != job.digest  # never the answers of two models in one file
        with self._store.input_path(job).open("rb") as content, self._store.result_path(job).open("wb" if again else "r+b") as result:
            if again:
                total = await asyncio.to_thread(lambda: sum(1 for _ in open_file(content, file_format).records))
            file = await asyncio.to_thread(open_file, content, file_format)
            writer = ResultWriter(job.output, file.columns, info, job.tasks)
            if again:
                result.write(writer.header())
                await self._save(job, result, writer, digest=info.digest, total=total)
            else:
                await asyncio.to_thread(lambda: sum(1 for _ in islice(file.records, job.answered)))
                writer.answered, writer.failed = job.answered, job.failed
                result.truncate(job.result_bytes)
                result.seek(job.result_bytes)
            saved = time.monotonic()
            async with contextlib.aclosing(in_order(file_groups(file), answerer, window=_WINDOW)) as answers:
                async for answered in answers:
                    await asyncio.to_thread(result.write, writer.rows(answered))
                    if time.monotonic() - saved > _SAVE_SECONDS:
                        await self._save(job, result, writer)
                        saved = time.monotonic()
            await self._save(job, result, writer, state="done", finished=time.time())
        self._metrics.job_ended("done")

    async def _save(self, job: Job, result: BinaryIO, writer: ResultWriter, **values: object) -> None:
        def save() -> bool:
            result.flush()
            os.fsync(result.fileno())
            progress = {"answered": writer.answered, "failed": writer.failed, "result_bytes": result.tell()}
            return self._store.save(job.id, self._holder, **progress, **values)

        if not await asyncio.to_thread(save):
            raise _TakenAwayError


class _TakenAwayError(Exception):
    """The job was cancelled, or another worker has it."""


async def file_groups(file: MoleculeFile) -> AsyncIterator[list[Record]]:
    """The records of a file in groups, read off the event loop."""
    while group := await asyncio.to_thread(lambda: list(islice(file.records, GROUP))):
        yield group
