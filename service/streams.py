"""Answers for more molecules than fit in memory: groups of records go through the pipeline a few at a time, and come out in order.

Reading stops while enough groups are under way or the other side does not take its answers, so memory stays the same however many records there are.
"""

import asyncio
import codecs
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from fastapi import Response
from pydantic import TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from service.answers import item, model
from service.batcher import QueueClosedError
from service.inflating import BrokenEncodingError
from service.pipeline import Pipeline, Question, Result
from service.reading import InChI, MolBlock, Source, Unreadable
from service.schemas import StreamLine, no_text
from service.security import Client, KeyRing

log = logging.getLogger(__name__)

GROUP = 64
"""Records of one group: a pass or a few of them, and little enough that streams and single requests take turns."""
STALL_SECONDS = 300.0
"""A stream in which nothing comes or nothing is taken for so long is given up: it holds one of few places."""

_WINDOW = 4  # groups of one stream that are under way: one parsed, one in the model, one written, one more
_LINE = TypeAdapter(StreamLine)
_LONGEST_ID = 256

Group = TypeVar("Group")
Done = TypeVar("Done")


class TooManyStreamsError(Exception):
    """All places for streams are taken."""


class StalledError(Exception):
    """Nothing came, or nothing was taken, for too long."""


@dataclass
class Record:
    """One molecule of a stream or file.

    Attributes:
        source: what to read, or why there is nothing to read.
        own: what goes back to the client as it came: the id of a line, the columns of a row.
    """

    source: Source | Unreadable
    own: Any = None


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
    groups: AsyncIterator[Group], work: Callable[[Group], Awaitable[Done]], gone: asyncio.Future[None] | None = None, window: int = _WINDOW
) -> AsyncGenerator[Done, None]:
    """What `work` makes of each group, in the order of the groups, at most `window` of them under way. Results do not wait for further groups.

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
            wanted: list[asyncio.Future[Any] | None] = [gone, reading if len(under_way) < window else None, *list(under_way)[:1]]
            await asyncio.wait([future for future in wanted if future is not None], return_when=asyncio.FIRST_COMPLETED)
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


async def until_stopping(groups: AsyncIterator[Group], stopping: asyncio.Event) -> AsyncIterator[Group]:
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
        question: what is asked of every molecule.
        keys, client: whose rate it goes by.
    """

    pipeline: Pipeline
    question: Question
    keys: KeyRing
    client: Client | None

    async def __call__(self, records: list[Record]) -> list[tuple[Record, Result]]:
        """Answer a group; a pass that fails is an error of its molecules.

        Raises:
            QueueClosedError: the service is stopping.
        """
        sources = [record.source for record in records if not isinstance(record.source, Unreadable)]
        results: list[Result] = []
        if sources:
            await self.keys.wait(self.client, len(sources))
            try:
                results = await self.pipeline.predict(self.question, sources, bounded=False)
            except QueueClosedError:
                raise
            except Exception:
                log.exception("a group of %d molecules of a stream failed", len(sources))
                results = [Unreadable("internal", "the service failed; its log says more under this request id") for _ in sources]
        answers = iter(results)
        return [(record, record.source if isinstance(record.source, Unreadable) else next(answers)) for record in records]


# --- NDJSON ---


async def ndjson_groups(body: AsyncIterator[bytes], max_line_bytes: int) -> AsyncIterator[list[Record]]:
    """Records of a body of lines, in groups of what has come, up to `GROUP`. Blank lines are no
    records, and a byte order mark in front of the first is none of its text.

    Raises:
        StalledError: nothing came for too long.
    """
    first = True
    async for lines in _lines(body, max_line_bytes):
        if first and lines[0] is not None:
            lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
        first = False
        records = [_record(line, max_line_bytes) for line in lines if line is None or line.strip()]
        for begin in range(0, len(records), GROUP):
            yield records[begin : begin + GROUP]
            await asyncio.sleep(0)


async def _lines(body: AsyncIterator[bytes], limit: int) -> AsyncIterator[list[bytes | None]]:
    """Whole lines as they come; None stands for a line that is too long, of which nothing is kept."""
    rest, too_long = b"", False
    while True:
        try:
            async with asyncio.timeout(STALL_SECONDS):
                chunk = await anext(body)
        except StopAsyncIteration:
            if rest or too_long:
                yield [None if too_long else rest]
            return
        except TimeoutError:
            raise StalledError from None
        *whole, rest = (rest + chunk).split(b"\n")
        lines: list[bytes | None] = [line if len(line) <= limit else None for line in whole]
        if too_long and lines:
            lines[0], too_long = None, False
        if len(rest) > limit:
            rest, too_long = b"", True
        if lines:
            yield lines


def _record(line: bytes | None, limit: int) -> Record:
    if line is None:
        return Record(Unreadable("line_too_long", f"got a line of more than {limit} bytes (max_body_bytes)"))
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return Record(Unreadable("invalid_line", f"the line is not JSON: {error}"))
    if not isinstance(value, str | dict):
        expected = "expected a molecule as a JSON string, or an object"
        return Record(Unreadable("invalid_line", f"the line: got {no_text(value).got}, {expected}"))
    try:
        read = StreamLine(smiles=value) if isinstance(value, str) else _LINE.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = "/".join(["the line", *map(str, first["loc"])])[:100]
        own = value.get("id") if isinstance(value, dict) else None
        harmless = (isinstance(own, str) and len(own) <= _LONGEST_ID) or (isinstance(own, int) and not isinstance(own, bool))
        return Record(Unreadable("invalid_line", f"{where}: {first['msg'].removeprefix('Value error, ')}"), own if harmless else None)
    sources: tuple[Source | None, ...] = (
        read.smiles,
        read.graph,
        None if read.inchi is None else InChI(read.inchi),
        None if read.mol_block is None else MolBlock(read.mol_block),
    )
    return Record(next(source for source in sources if source is not None), read.id)


async def ndjson_answers(
    groups: AsyncIterator[list[Record]], answerer: Answerer, explain_routing: bool, gone: asyncio.Future[None] | None = None
) -> AsyncGenerator[bytes, None]:
    """A line for every record, in order. A stream that ends early ends with a line of nothing but an `error`, which says how many were answered."""
    info, tasks, index = answerer.question.engine.info, answerer.question.tasks, 0
    try:
        # Closed with this, and not when it is collected: what is under way for a client that takes nothing more is given up at once.
        async with aclosing(in_order(until_stopping(groups, answerer.pipeline.stopping), answerer, gone)) as answers:
            async for answered in answers:
                lines = []
                for record, result in answered:
                    shown = item(index, result, info, tasks, explain_routing)
                    lines.append(orjson.dumps(shown if record.own is None else {"index": index, "id": record.own, **shown}))
                    index += 1
                yield b"\n".join(lines) + b"\n"
    except QueueClosedError:
        yield _last_line("not_ready", f"the service is stopping; {index} lines were answered, send the others again")
    except BrokenEncodingError as error:
        yield _last_line("bad_request", f"{error.detail}; {index} lines were answered")
    except StalledError:
        yield _last_line("stalled", f"nothing came for {STALL_SECONDS:g} s; {index} lines were answered")


def _last_line(code: str, message: str) -> bytes:
    return orjson.dumps({"error": {"code": code, "message": message}}) + b"\n"


class StreamedResponse(Response):
    """A body that is made while it is sent, and while the request's body may still be coming: so it leaves `receive` to who reads that.

    Starlette's own takes messages off `receive` to see whether the client is there.
    """

    def __init__(
        self, parts: AsyncGenerator[bytes, None], media_type: str, headers: dict[str, str], places: StreamPlaces, on_end: Callable[[], None]
    ) -> None:
        """Prepare to send `parts`. Raises TooManyStreamsError if there is no place for another stream; then nothing has been sent."""
        super().__init__(media_type=media_type, headers=headers)
        del self.headers["content-length"]
        try:
            places.take()
        except TooManyStreamsError:
            on_end()
            raise
        self._parts, self._places, self._on_end = parts, places, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; a client that takes nothing for `STALL_SECONDS` is given up."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for part in self._parts:
                async with asyncio.timeout(STALL_SECONDS):
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except ClientDisconnect:
            log.info("the client of a stream went away")
        finally:
            self._places.give_back()
            self._on_end()
            await self._parts.aclose()


def model_headers(question: Question) -> dict[str, str]:
    """Which model answers, where the body has no place for it."""
    return {f"X-Model-{name.capitalize()}": value for name, value in model(question.engine.info).items()}
