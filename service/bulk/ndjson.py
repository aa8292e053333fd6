"""service.bulk.ndjson"""

import asyncio
import codecs
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import orjson
from pydantic import TypeAdapter, ValidationError

from service.bulk.flow import GROUP, Answerer, in_order, until_stopping
from service.core.batcher import QueueClosedError
from service.core.reading import InChI, ItemFailure, MolBlock, Record, Source
from service.formats.answers import item
from service.formats.inflating import BrokenEncodingError
from service.schemas import StreamLine, no_text

STALL_SECONDS = 300.0
_LINE = TypeAdapter(StreamLine)
_LONGEST_ID = 256


class StalledError(Exception):
    """Nothing came, or nothing was taken, for too long."""


# --- NDJSON ---


async def ndjson_groups(
    body: AsyncIterator[bytes], max_line_bytes: int
) -> AsyncIterator[list[Record]]:
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
    """Whole lines as they come; None stands for a line that is too long, of which nothing is
    kept."""
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
        return Record(
            ItemFailure("line_too_long", f"got a line of more than {limit} bytes (max_body_bytes)")
        )
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
        where = "/".join(["the line", *map(str, first["loc"])])[:100]
        own = value.get("id") if isinstance(value, dict) else None
        harmless = (isinstance(own, str) and len(own) <= _LONGEST_ID) or (
            isinstance(own, int) and not isinstance(own, bool)
        )
        return Record(
            ItemFailure("invalid_line", f"{where}: {first['msg'].removeprefix('Value error, ')}"),
            own if harmless else None,
        )
    sources: tuple[Source | None, ...] = (
        read.smiles,
        read.graph,
        None if read.inchi is None else InChI(read.inchi),
        None if read.mol_block is None else MolBlock(read.mol_block),
    )
    return Record(next(source for source in sources if source is not None), read.id)


async def ndjson_answers(
    groups: AsyncIterator[list[Record]],
    answerer: Answerer,
    explain_routing: bool,
    gone: asyncio.Future[None] | None = None,
) -> AsyncGenerator[bytes, None]:
    """A line for every record, in order. A stream that ends early ends with a line of nothing but
    an `error`, which says how many were answered."""
    info, tasks, index = answerer.query.engine.info, answerer.query.tasks, 0
    try:
        # Closed with this, and not when it is collected: what is under way for a client that takes
        # nothing more is given up at once.
        async with aclosing(
            in_order(until_stopping(groups, answerer.pipeline.stopping), answerer, gone)
        ) as answers:
            async for answered in answers:
                lines = []
                for record, result in answered:
                    shown = item(index, result, info, tasks, explain_routing)
                    lines.append(
                        orjson.dumps(
                            shown
                            if record.own is None
                            else {"index": index, "id": record.own, **shown}
                        )
                    )
                    index += 1
                yield b"\n".join(lines) + b"\n"
    except QueueClosedError:
        yield _last_line(
            "not_ready",
            f"the service is stopping; {index} lines were answered, send the others again",
        )
    except BrokenEncodingError as error:
        yield _last_line("bad_request", f"{error.detail}; {index} lines were answered")
    except StalledError:
        yield _last_line(
            "stalled", f"nothing came for {STALL_SECONDS:g} s; {index} lines were answered"
        )


def _last_line(code: str, message: str) -> bytes:
    return orjson.dumps({"error": {"code": code, "message": message}}) + b"\n"
