"""Bounded flow of groups of records through the pipeline, with answers in order.

A few groups are under way at a time. Reading pauses while there are enough of them, or while the
client does not take its answers, so memory does not grow with the number of records.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect

from service.core.answer import Result
from service.core.batcher import QueueClosedError
from service.core.engine import PredictionQuery
from service.core.explaining import NOTHING, Explained
from service.core.layout import with_blocks, without_block
from service.core.pipeline import Pipeline
from service.core.reading import ItemFailure, Record
from service.formats.molecule_files import MoleculeFile
from service.security import Client, KeyRing

log = logging.getLogger(__name__)
GROUP_SIZE = 64
"""Records of a group: enough for a model pass, few enough that streams and requests take turns."""
_GROUP_CHARACTERS = 1024**2
_WINDOW = 4  # groups under way: one is parsed, one in the model, one written, one waits
Group = TypeVar("Group")
Done = TypeVar("Done")


class TooManyStreamsError(Exception):
    """All permits for concurrent streams are taken."""


class StreamPermits:
    """Permits that bound the number of concurrent streams."""

    def __init__(self, count: int) -> None:
        self._free = count

    def acquire(self) -> None:
        """Take a permit.

        Raises:
            TooManyStreamsError: all permits are taken.
        """
        if not self._free:
            raise TooManyStreamsError
        self._free -= 1

    def release(self) -> None:
        """Return a permit."""
        self._free += 1


async def in_order(
    groups: AsyncIterator[Group],
    work: Callable[[Group], Awaitable[Done]],
    disconnected: asyncio.Future[None] | None = None,
    window: int = _WINDOW,
) -> AsyncGenerator[Done, None]:
    """Apply `work` to groups concurrently, and yield the results in the order of the groups.

    A result is yielded as soon as it and all earlier ones are done; it does not wait for more
    groups.

    Args:
        groups: the groups; the next one is read only while fewer than `window` are under way.
        work: coroutine function that answers a group.
        disconnected: done once nobody reads the results any more.
        window: largest number of groups under way.

    Raises:
        ClientDisconnect: `disconnected` is done; work under way is cancelled.
        Exception: what `groups` raised, after the results of all groups before; or what `work`
            raised.
    """
    under_way: deque[asyncio.Future[Done]] = deque()
    reading: asyncio.Future[Group] | None = asyncio.ensure_future(anext(groups))
    end: BaseException | None = None
    try:
        while reading is not None or under_way:
            events: list[asyncio.Future[Any] | None] = [
                disconnected,
                reading if len(under_way) < window else None,
                *list(under_way)[:1],
            ]
            pending = [future for future in events if future is not None]
            await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            if disconnected is not None and disconnected.done():
                raise ClientDisconnect
            if reading is not None and reading.done() and len(under_way) < window:
                end = reading.exception()
                if end is None:
                    under_way.append(asyncio.ensure_future(work(reading.result())))
                reading = asyncio.ensure_future(anext(groups)) if end is None else None
            while under_way and under_way[0].done():
                yield under_way.popleft().result()
        if end is not None and not isinstance(end, StopAsyncIteration):
            raise end  # after the answers to everything that was read before it
    finally:
        unfinished = [future for future in (reading, *under_way) if future is not None]
        for future in unfinished:
            future.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)


async def until_stopping(
    groups: AsyncIterator[Group], stopping: asyncio.Event
) -> AsyncIterator[Group]:
    """Yield the groups until the service is told to stop.

    Raises:
        QueueClosedError: `stopping` was set.
    """
    stopped = asyncio.ensure_future(stopping.wait())
    try:
        while True:
            reading = asyncio.ensure_future(anext(groups))
            try:
                await asyncio.wait([stopped, reading], return_when=asyncio.FIRST_COMPLETED)
                if stopped.done():
                    raise QueueClosedError
                yield reading.result()
            except StopAsyncIteration:
                return
            finally:
                reading.cancel()
    finally:
        stopped.cancel()


@dataclass(frozen=True)
class Answerer:
    """Answers groups of records with one model.

    Attributes:
        pipeline: the prediction pipeline.
        query: model, tasks and routing.
        keys: counts the molecules against the rate limit of `client`.
        client: holder of the key; None without keys.
        explained: explanations of every record.
        lays_out: whether answers get mol blocks, where records have none of their own.
    """

    pipeline: Pipeline
    query: PredictionQuery
    keys: KeyRing
    client: Client | None
    explained: Explained = NOTHING
    lays_out: bool = False

    async def __call__(self, records: list[Record]) -> list[tuple[Record, Result]]:
        """Answer the records of a group, in order.

        A model pass that fails becomes an error of every molecule of the group.

        Raises:
            QueueClosedError: the service is stopping.
        """
        sources = [
            record.source for record in records if not isinstance(record.source, ItemFailure)
        ]
        results: list[Result] = []
        if sources:
            await self.keys.wait(self.client, len(sources))
            try:
                results = await self.pipeline.predict(
                    self.query, sources, bounded=False, explained=self.explained
                )
                if self.lays_out:
                    missing = without_block(sources, results)
                    blocks = await self.pipeline.lay_out([*missing.values()])
                    results = with_blocks(results, [*missing], blocks)
            except QueueClosedError:
                raise
            except Exception:
                log.exception("a group of %d molecules of a stream failed", len(sources))
                message = "the service failed; its log says more under this request id"
                results = [ItemFailure("internal", message)] * len(sources)
        answers = iter(results)
        return [
            (record, record.source if isinstance(record.source, ItemFailure) else next(answers))
            for record in records
        ]


async def file_groups(file: MoleculeFile, size: int = GROUP_SIZE) -> AsyncIterator[list[Record]]:
    """Read the records of a file in groups of up to `size`, off the event loop."""
    while group := await asyncio.to_thread(next_group, file.records, size):
        yield group


def next_group(records: Iterator[Record], size: int) -> list[Record]:
    """Read up to `size` records, fewer if they are long, which bounds a group's memory."""
    group: list[Record] = []
    characters = 0
    for record in islice(records, size):
        group.append(record)
        characters += sum(len(str(value or "")) for value in record.passthrough)
        if characters > _GROUP_CHARACTERS:
            break
    return group
