"""Answers for more molecules than fit in memory: groups of records go through the pipeline a few at
a time, and come out in order.

Reading stops while enough groups are under way or the other side does not take its answers, so
memory stays the same however many records there are.
"""

import asyncio
import logging
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
)
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect

from service.core.batcher import QueueClosedError
from service.core.engine import PredictionQuery
from service.core.pipeline import Pipeline, Result
from service.core.reading import ItemFailure, Record
from service.formats.molecule_files import MoleculeFile
from service.security import Client, KeyRing

log = logging.getLogger(__name__)
GROUP = 64
"""Records of one group: a pass or a few of them, and little enough that streams and single requests
take turns."""
"""A stream in which nothing comes or nothing is taken for so long is given up: it holds one of few
places."""
# groups of one stream that are under way: one parsed, one in the model, one written, one more
_WINDOW = 4
Group = TypeVar("Group")
Done = TypeVar("Done")


class TooManyStreamsError(Exception):
    """All places for streams are taken."""


class StreamPlaces:
    """How many streams there may be at a time."""

    def __init__(self, most: int) -> None:
        self._free = most

    def take(self) -> None:
        """Take a place. Raises TooManyStreamsError."""
        if not self._free:
            raise TooManyStreamsError
        self._free -= 1

    def give_back(self) -> None:
        """One place more."""
        self._free += 1


async def in_order(
    groups: AsyncIterator[Group],
    work: Callable[[Group], Awaitable[Done]],
    gone: asyncio.Future[None] | None = None,
    window: int = _WINDOW,
) -> AsyncGenerator[Done, None]:
    """What `work` makes of each group, in the order of the groups, at most `window` of them under
    way. Results do not wait for further groups.

    Args:
        groups: read one by one, the next only while fewer than `window` are under way.
        work: called for each.
        gone: done when nobody wants results any more.
        window: see above.
    """
    under_way: deque[asyncio.Future[Done]] = deque()
    reading: asyncio.Future[Group] | None = asyncio.ensure_future(anext(groups))
    end: BaseException | None = None
    try:
        while reading is not None or under_way:
            wanted: list[asyncio.Future[Any] | None] = [
                gone,
                reading if len(under_way) < window else None,
                *list(under_way)[:1],
            ]
            await asyncio.wait(
                [future for future in wanted if future is not None],
                return_when=asyncio.FIRST_COMPLETED,
            )
            if gone is not None and gone.done():
                raise ClientDisconnect
            if reading is not None and reading.done() and len(under_way) < window:
                end = reading.exception()
                if end is None:
                    under_way.append(asyncio.ensure_future(work(reading.result())))
                reading = asyncio.ensure_future(anext(groups)) if end is None else None
            while under_way and under_way[0].done():
                yield under_way.popleft().result()
        if end is not None and not isinstance(end, StopAsyncIteration):
            raise end  # only now: what was read before it has been answered
    finally:
        left = [future for future in (reading, *under_way) if future is not None]
        for future in left:
            future.cancel()
        await asyncio.gather(*left, return_exceptions=True)


async def until_stopping(
    groups: AsyncIterator[Group], stopping: asyncio.Event
) -> AsyncIterator[Group]:
    """The groups, until the service is told to stop. Raises QueueClosedError then."""
    told = asyncio.ensure_future(stopping.wait())
    try:
        while True:
            reading = asyncio.ensure_future(anext(groups))
            try:
                await asyncio.wait([told, reading], return_when=asyncio.FIRST_COMPLETED)
                if told.done():
                    raise QueueClosedError
                yield reading.result()
            except StopAsyncIteration:
                return
            finally:
                reading.cancel()
    finally:
        told.cancel()


@dataclass(frozen=True)
class Answerer:
    """Answers groups of records.

    Attributes:
        pipeline: that answers.
        query: what is asked of every molecule.
        keys, client: whose rate it goes by.
    """

    pipeline: Pipeline
    query: PredictionQuery
    keys: KeyRing
    client: Client | None

    async def __call__(self, records: list[Record]) -> list[tuple[Record, Result]]:
        """Answer a group; a pass that fails is an error of its molecules.

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
                results = await self.pipeline.predict(self.query, sources, bounded=False)
            except QueueClosedError:
                raise
            except Exception:
                log.exception("a group of %d molecules of a stream failed", len(sources))
                results = [
                    ItemFailure(
                        "internal", "the service failed; its log says more under this request id"
                    )
                    for _ in sources
                ]
        answers = iter(results)
        return [
            (record, record.source if isinstance(record.source, ItemFailure) else next(answers))
            for record in records
        ]


_GROUP_CHARACTERS = 1024**2


async def file_groups(file: MoleculeFile) -> AsyncIterator[list[Record]]:
    """The records of a file in groups, read off the event loop."""
    while group := await asyncio.to_thread(_group, file.records):
        yield group


def _group(records: Iterator[Record]) -> list[Record]:
    """Up to `GROUP` records, fewer of long ones: a group's memory stays the same."""
    group: list[Record] = []
    characters = 0
    for record in islice(records, GROUP):
        group.append(record)
        characters += sum(len(value or "") for value in record.own)
        if characters > _GROUP_CHARACTERS:
            break
    return group
