"""Working on jobs: one at a time, from where each was left."""

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
from service.core.models import ModelRegistry, UnknownModelError
from service.core.pipeline import Pipeline
from service.formats.molecule_files import FileFormat, ResultWriter, open_file
from service.security import KeyRing
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)
_SAVE_SECONDS = 1.0
_LOOK_SECONDS = 1.0
# groups of one job that are under way: little, for nobody waits for it as for a request
_WINDOW = 2


class JobRunner:
    """Works on jobs, one at a time."""

    def __init__(
        self,
        store: JobStore,
        pipeline: Pipeline,
        models: ModelRegistry,
        keys: KeyRing,
        metrics: Metrics,
    ) -> None:
        self._store, self._pipeline, self._models, self._keys, self._metrics = (
            store,
            pipeline,
            models,
            keys,
            metrics,
        )
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
            query = PredictionQuery.of(
                job.model, self._models.get(job.model), job.tasks, job.routing
            )
            if query.tasks != job.tasks:
                raise UnknownTaskError(
                    f"got tasks {', '.join(job.tasks)}, of which the model now has"
                    f" {', '.join(query.tasks) or 'none'}"
                )
            query.engine.info.check_table(query.tasks)
            client = self._keys.named(job.client)
            await self._answer(job, Answerer(self._pipeline, query, self._keys, client))
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
            log.log(
                logging.WARNING if foreseen else logging.ERROR,
                "job %s failed: %s",
                job.id,
                error,
                exc_info=not foreseen,
            )
            message = (
                str(error)
                if foreseen
                else "the service failed; its log says more under this job's id"
            )
            ended = {"state": "failed", "finished": time.time(), "error": message}
            if await asyncio.to_thread(lambda: self._store.save(job.id, self._holder, **ended)):
                self._metrics.job_ended("failed")

    async def _answer(self, job: Job, answerer: Answerer) -> None:
        """Go through the file from where it was left, and note every second how far that is."""
        info = answerer.query.engine.info
        file_format = FileFormat(job.kind, job.smiles_column, job.id_field)
        again = info.digest != job.digest  # never the answers of two models in one file
        with (
            self._store.input_path(job).open("rb") as content,
            self._store.result_path(job).open("wb" if again else "r+b") as result,
        ):
            if again:
                total = await asyncio.to_thread(
                    lambda: sum(1 for _ in open_file(content, file_format).records)
                )
            file = await asyncio.to_thread(open_file, content, file_format)
            writer = ResultWriter(job.output, file, info, job.tasks)
            if again:
                result.write(writer.header())
                await self._save(job, result, writer, digest=info.digest, total=total)
            else:
                await asyncio.to_thread(lambda: sum(1 for _ in islice(file.records, job.answered)))
                writer.answered, writer.failed = job.answered, job.failed
                result.truncate(job.result_bytes)
                result.seek(job.result_bytes)
            saved = time.monotonic()
            async with contextlib.aclosing(
                in_order(file_groups(file), answerer, window=_WINDOW)
            ) as answers:
                async for answered in answers:
                    await asyncio.to_thread(result.write, writer.rows(answered))
                    if time.monotonic() - saved > _SAVE_SECONDS:
                        await self._save(job, result, writer)
                        saved = time.monotonic()
            await self._save(job, result, writer, state="done", finished=time.time())
        self._metrics.job_ended("done")

    async def _save(
        self, job: Job, result: BinaryIO, writer: ResultWriter, **values: object
    ) -> None:
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
            raise _TakenAwayError


class _TakenAwayError(Exception):
    """The job was cancelled, or another worker has it."""
