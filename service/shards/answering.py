"""Answers to records in this process, however long one takes: no clock decides about a molecule."""

import math
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from models.errors import ArtifactError
from service.core.answer import Result
from service.core.artifact_engine import load_engine
from service.core.engine import PredictionQuery
from service.core.local import predict
from service.core.reading import ItemFailure, Record
from service.settings import load_settings
from service.shards.request import ScreenModel
from service.shards.table import check_labels

ROW_CPU_SECONDS = 60
"""CPU time of one record. Under the limits of the service none was found that takes 0.05 s."""
CHUNK_CPU_SECONDS = 600
"""CPU time of a chunk that nobody has died in, of up to `CHUNK_ROWS` records."""
CHUNK_ROWS = 1024


class Answering:
    """A loaded model that answers records."""

    def __init__(self, model: ScreenModel) -> None:
        """Load the model.

        Raises:
            GMergingError: it, or what it is asked for, cannot be used.
        """
        request = model.request
        chosen = {"device": model.device, "threads": model.threads}
        changes = {name: value for name, value in chosen.items() if value is not None}
        self.settings = load_settings().model_copy(update=request.limits.model_dump() | changes)
        engine = load_engine(model.artifact, self.settings)
        self.info = info = engine.info
        if model.digest not in (None, info.digest):
            got = f"got model {info.name} {info.version} ({info.digest[:12]}) in {model.artifact}"
            raise ArtifactError(f"{got}, expected the plan's ({model.digest[:12]})")
        self._query = PredictionQuery.checked(
            info.name, engine, request.tasks, request.routing, request.experts
        )
        info.check_table(self._query.tasks)
        check_labels(request, info.task_infos)

    def __call__(self, records: Sequence[Record]) -> list[Result]:
        """Return one result per record. Raises what the model raises."""
        sources = [r.source for r in records if not isinstance(r.source, ItemFailure)]
        results = iter(predict(self._query, self.settings, sources))
        return [
            record.source if isinstance(record.source, ItemFailure) else next(results)
            for record in records
        ]


@contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Let the system end this process if it computes for longer in the `with` block.

    CPU time, unlike time by the clock, is hardly more on a busy machine.
    """
    before, most = resource.getrlimit(resource.RLIMIT_CPU)
    end = math.ceil(time.process_time() + seconds)
    if most != resource.RLIM_INFINITY:
        end = min(end, most)
    if before != resource.RLIM_INFINITY:
        end = min(end, before)
    resource.setrlimit(resource.RLIMIT_CPU, (end, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CPU, (before, most))
