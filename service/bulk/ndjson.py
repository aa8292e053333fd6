"""NDJSON streams: lines to records, and answers to lines."""

import asyncio
import codecs
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import aclosing
from typing import Any

import orjson
from pydantic import TypeAdapter, ValidationError

from service.bulk.flow import GROUP_SIZE, Answerer, in_order, until_stopping
from service.core.batcher import QueueClosedError
from service.core.reading import InChI, ItemFailure, MolBlock, Record, Source
from service.formats.answers import item
from service.formats.inflating import BrokenEncodingError
from service.schemas import StreamLine, no_text

STALL_SECONDS = 300.0
"""Time after which a stream is given up if its client sends, or takes, nothing."""
_LINE = TypeAdapter(StreamLine)
_LONGEST_ID = 256


class StalledError(Exception):
    """The client sent nothing for `STALL_SECONDS`."""


async def ndjson_groups(
    body: AsyncIterator[bytes], max_line_bytes: int
) -> AsyncIterator[list[Record]]:
    """Read the records of an NDJSON body, in groups of up to `GROUP_SIZE`.

    A group holds what has arrived, so that answers do not wait for more lines. Blank lines are
    skipped, and so is a byte order mark before the first line.

    Args:
        body: chunks of the body, cut anywhere.
        max_line_bytes: a longer line becomes a record with an error.

    Raises:
        StalledError: nothing arrived for `STALL_SECONDS`.
    """
    first = True
    async for lines in _lines(body, max_line_bytes):
        if first and lines[0] is not None:
            lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
        first = False
        records = [_record(line, max_line_bytes) for line in lines if line is None or line.strip()]
        for begin in range(0, len(records), GROUP_SIZE):
            yield records[begin : begin + GROUP_SIZE]
            await asyncio.sleep(0)


async def _lines(body: AsyncIterator[bytes], limit: int) -> AsyncIterator[list[bytes | None]]:
    """Yield whole lines as they arrive; a line over the limit is dropped and yielded as None."""
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
        message = f"got a line of more than {limit} bytes (max_body_bytes)"
        return Record(ItemFailure("line_too_long", message))
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return Record(ItemFailure("invalid_line", f"the line is not JSON: {error}"))
    if not isinstance(value, str | dict):
        expected = "expected a molecule as a JSON string, or an object"
        return Record(
            ItemFailure("invalid_line", f"the line: got {no_text(value).got}, {expected}")
        )
    try:
        read = StreamLine(smiles=value) if isinstance(value, str) else _LINE.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        location = "/".join(["the line", *map(str, first["loc"])])[:100]
        message = f"{location}: {first['msg'].removeprefix('Value error, ')}"
        return Record(ItemFailure("invalid_line", message), _valid_id(value))
    sources: tuple[Source | None, ...] = (
        read.smiles,
        read.graph,
        None if read.inchi is None else InChI(read.inchi),
        None if read.mol_block is None else MolBlock(read.mol_block),
    )
    return Record(next(source for source in sources if source is not None), read.id)


def _valid_id(value: str | dict[str, Any]) -> str | int | None:
    """Return the id of an invalid line if it can be sent back."""
    identifier = value.get("id") if isinstance(value, dict) else None
    if isinstance(identifier, str) and len(identifier) <= _LONGEST_ID:
        return identifier
    is_number = isinstance(identifier, int) and not isinstance(identifier, bool)
    return identifier if is_number else None


async def ndjson_answers(
    groups: AsyncIterator[list[Record]],
    answerer: Answerer,
    explain: Collection[str] = (),
    disconnected: asyncio.Future[None] | None = None,
) -> AsyncGenerator[bytes, None]:
    """Yield one line of answer per record, in order.

    A stream that ends early ends with a line that has only an `error`, which says how many lines
    were answered.

    Args:
        groups: groups of records.
        answerer: answers a group.
        explain: names of explanations to add.
        disconnected: done once the client has disconnected.
    """
    info, tasks, index = answerer.query.engine.info, answerer.query.tasks, 0
    try:
        groups = until_stopping(groups, answerer.pipeline.stopping)
        # Closed explicitly, so that work for a client that has gone is cancelled at once and not
        # when the generator is collected.
        async with aclosing(in_order(groups, answerer, disconnected)) as answers:
            async for answered in answers:
                lines = []
                for record, result in answered:
                    line = item(index, result, info, tasks, explain)
                    if record.passthrough is not None:
                        line = {"index": index, "id": record.passthrough, **line}
                    lines.append(orjson.dumps(line))
                    index += 1
                yield b"\n".join(lines) + b"\n"
    except QueueClosedError:
        message = f"the service is stopping; {index} lines were answered, send the others again"
        yield _last_line("not_ready", message)
    except BrokenEncodingError as error:
        yield _last_line("bad_request", f"{error.detail}; {index} lines were answered")
    except StalledError:
        message = f"nothing came for {STALL_SECONDS:g} s; {index} lines were answered"
        yield _last_line("stalled", message)


def _last_line(code: str, message: str) -> bytes:
    return orjson.dumps({"error": {"code": code, "message": message}}) + b"\n"
