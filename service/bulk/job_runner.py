"""Runner of the jobs: one at a time, each resumed where it was left."""

import asyncio
import contextlib
import logging
import os
import time
import uuid
from itertools import islice
from typing import BinaryIO

from models.errors import GMergingError, UnknownTaskError
from service.bulk.flow import Answerer, file_groups, in_order
from service.bulk.jobs import Job, JobStore
from service.core.batcher import QueueClosedError
from service.core.engine import PredictionQuery
from service.core.explanations.rows import explained_rows
from service.core.models import ModelRegistry, UnknownModelError
from service.core.pipeline import Pipeline
from service.formats.molecule_files import FileFormat, open_file
from service.formats.row_writers import RowWriter, row_writer
from service.security import KeyRing
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)
_SAVE_SECONDS = 1.0
_POLL_SECONDS = 1.0
_WINDOW = 2  # groups under way; few, because nobody waits for a job as for a request


class JobRunner:
    """Answers jobs in the background, one at a time."""

    def __init__(
        self,
        store: JobStore,
        pipeline: Pipeline,
        models: ModelRegistry,
        keys: KeyRing,
        metrics: Metrics,
    ) -> None:
        self._store, self._pipeline, self._models = store, pipeline, models
        self._keys, self._metrics = keys, metrics
        self._holder = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start polling for jobs."""
        self._task = asyncio.create_task(self._work(), name="jobs")

    async def close(self) -> None:
        """Stop; the job under way is released and can be resumed."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _work(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._store.delete_expired)
                job = await asyncio.to_thread(self._store.claim, self._holder)
                if job is not None:
                    await self._run(job)
                    continue
            except Exception:  # goes on polling: a disk that is full now may have room later
                log.exception("looking for jobs failed")
            await asyncio.sleep(_POLL_SECONDS)

    async def _run(self, job: Job) -> None:
        try:
            engine = self._models.get(job.model)
            query = PredictionQuery.of(job.model, engine, job.tasks, job.routing, job.experts)
            if query.tasks != job.tasks:
                raise UnknownTaskError(
                    f"got tasks {', '.join(job.tasks)}, of which the model now has"
                    f" {', '.join(query.tasks) or 'none'}"
                )
            query.engine.info.check_experts(query.tasks, query.experts)
            query.engine.info.check_table(query.tasks)
            client = self._keys.client_named(job.client)
            explained = explained_rows(query, job.explain)
            asked = query, self._keys, client, explained, job.output == "sdf"
            answerer = Answerer(self._pipeline, *asked)
            await self._answer(job, answerer)
        except (asyncio.CancelledError, QueueClosedError):
            await asyncio.shield(asyncio.to_thread(self._store.release, job.id, self._holder))
            raise asyncio.CancelledError from None
        except _JobLostError:
            log.info("job %s was cancelled or taken over", job.id)
            current = await asyncio.to_thread(self._store.get, job.id, job.client)
            if current is None or current.state == "cancelled":
                self._metrics.job_ended("cancelled")
        except Exception as error:
            expected = isinstance(error, GMergingError | UnknownModelError)
            level = logging.WARNING if expected else logging.ERROR
            log.log(level, "job %s failed: %s", job.id, error, exc_info=not expected)
            message = str(error)
            if not expected:
                message = "the service failed; its log says more under this job's id"
            values = {"state": "failed", "finished": time.time(), "error": message}
            if await asyncio.to_thread(lambda: self._store.save(job.id, self._holder, **values)):
                self._metrics.job_ended("failed")

    async def _answer(self, job: Job, answerer: Answerer) -> None:
        """Answer the file from where it was left, and save the progress every second.

        If another artifact answers now, start over: a result never mixes the answers of two models.
        """
        info = answerer.query.engine.info
        file_format = FileFormat(job.kind, job.smiles_column, job.id_field)
        starts_over = info.digest != job.digest
        with (
            self._store.input_path(job).open("rb") as content,
            self._store.result_path(job).open("wb" if starts_over else "r+b") as result,
        ):
            if starts_over:
                total = await asyncio.to_thread(
                    lambda: sum(1 for _ in open_file(content, file_format).records)
                )
            file = await asyncio.to_thread(open_file, content, file_format)
            rows = file, info, job.tasks, answerer.explained
            writer = row_writer(job.output, *rows, job.escape_formulas)
            if starts_over:
                result.write(writer.header())
                await self._save(job, result, writer, digest=info.digest, total=total)
            else:
                await asyncio.to_thread(lambda: sum(1 for _ in islice(file.records, job.answered)))
                writer.answered, writer.failed = job.answered, job.failed
                result.truncate(job.result_bytes)
                result.seek(job.result_bytes)
            saved = time.monotonic()
            answers = in_order(file_groups(file), answerer, window=_WINDOW)
            async with contextlib.aclosing(answers):
                async for answered in answers:
                    await asyncio.to_thread(result.write, writer.rows(answered))
                    if time.monotonic() - saved > _SAVE_SECONDS:
                        await self._save(job, result, writer)
                        saved = time.monotonic()
            await self._save(job, result, writer, state="done", finished=time.time())
        self._metrics.job_ended("done")

    async def _save(self, job: Job, result: BinaryIO, writer: RowWriter, **values: object) -> None:
        def save() -> bool:
            result.flush()
            os.fsync(result.fileno())
            progress = {
                "answered": writer.answered,
                "failed": writer.failed,
                "result_bytes": result.tell(),
            }
            return self._store.save(job.id, self._holder, **progress, **values)

        if not await asyncio.to_thread(save):
            raise _JobLostError


class _JobLostError(Exception):
    """The job was cancelled, or another worker has taken it over."""
