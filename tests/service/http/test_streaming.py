"""Streamed bodies and responses, with the ASGI channels in the test's hands."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from service.bulk.flow import StreamPermits, TooManyStreamsError
from service.formats.inflating import BrokenEncodingError
from service.http import streaming
from service.http.streaming import Body, StreamedResponse, model_headers, unless_disconnected
from tests.service.doubles import query_of

pytestmark = pytest.mark.anyio
MIB = 1024**2


class Channel:
    """The receiving side of ASGI: messages that the test puts in, one by one."""

    def __init__(self, *messages: Message | Exception) -> None:
        self.queue: asyncio.Queue[Message | Exception] = asyncio.Queue()
        self.received = 0
        for message in messages:
            self.queue.put_nowait(message)

    async def __call__(self) -> Message:
        message = await self.queue.get()
        self.received += 1
        if isinstance(message, Exception):
            raise message
        return message


def chunk(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


DISCONNECT: Message = {"type": "http.disconnect"}


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


# --- Body ---


async def test_body_is_yielded_chunk_by_chunk_as_it_arrives() -> None:
    channel = Channel(chunk(b"a"))
    body = Body(channel)
    chunks = aiter(body.chunks())
    assert await anext(chunks) == b"a"
    waiting = asyncio.ensure_future(anext(chunks))
    await settle()
    assert not waiting.done()
    channel.queue.put_nowait(chunk(b"b", more=False))
    assert await waiting == b"b"
    with pytest.raises(StopAsyncIteration):
        await anext(chunks)
    assert not body.disconnected.done()
    body.close()


async def test_body_reads_ahead_by_a_mebibyte_and_no_further() -> None:
    channel = Channel(*(chunk(b"x" * (MIB // 2)) for _ in range(10)))
    body = Body(channel)
    await settle()
    assert channel.received == 3  # 1.5 MiB: the limit was passed by the third
    chunks = aiter(body.chunks())
    await anext(chunks)
    await settle()
    assert channel.received == 4
    body.close()


async def test_disconnect_is_noticed_while_nobody_reads_and_raised_after_what_came() -> None:
    body = Body(Channel(chunk(b"a"), DISCONNECT))
    await asyncio.wait_for(asyncio.shield(body.disconnected), 5)
    chunks = aiter(body.chunks())
    assert await anext(chunks) == b"a"
    with pytest.raises(ClientDisconnect):
        await anext(chunks)


async def test_disconnect_is_noticed_after_the_end_of_the_body() -> None:
    channel = Channel(chunk(b"a", more=False))
    body = Body(channel)
    assert [c async for c in body.chunks()] == [b"a"]
    assert not body.disconnected.done()
    channel.queue.put_nowait(DISCONNECT)
    await asyncio.wait_for(asyncio.shield(body.disconnected), 5)


async def test_body_that_cannot_be_inflated_gives_what_could_be_read_first() -> None:
    body = Body(Channel(chunk(b"a"), BrokenEncodingError("got gzip that ends too early")))
    chunks = aiter(body.chunks())
    assert await anext(chunks) == b"a"
    with pytest.raises(BrokenEncodingError, match="ends too early"):
        await anext(chunks)


async def test_closed_body_receives_no_more() -> None:
    channel = Channel()
    body = Body(channel)
    await settle()
    body.close()
    await settle()
    channel.queue.put_nowait(chunk(b"late"))
    await settle()
    assert channel.received == 0


# --- unless_disconnected ---


async def test_result_of_work_whose_client_stays() -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        return 7

    assert await unless_disconnected(Channel(), work()) == 7


async def test_work_of_a_client_that_goes_is_cancelled() -> None:
    cancelled = asyncio.Event()

    async def work() -> int:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return 7

    assert await unless_disconnected(Channel(chunk(b""), DISCONNECT), work()) is None
    await asyncio.wait_for(cancelled.wait(), 5)


async def test_error_of_the_work_is_raised() -> None:
    async def work() -> int:
        raise ValueError("the model broke")

    with pytest.raises(ValueError, match="the model broke"):
        await unless_disconnected(Channel(), work())


# --- StreamedResponse ---


class Stream:
    """A streamed response with everything that happened to it."""

    def __init__(self, chunks: AsyncGenerator[bytes, None], permits: StreamPermits) -> None:
        self.sent: list[Message] = []
        self.ends = 0
        self.response = StreamedResponse(chunks, "text/x", {"x-a": "1"}, permits, self._on_end)

    def _on_end(self) -> None:
        self.ends += 1

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def run(self) -> None:
        await self.response({"type": "http"}, Channel(), self.send)


def is_free(permits: StreamPermits) -> bool:
    try:
        permits.acquire()
    except TooManyStreamsError:
        return False
    permits.release()
    return True


async def two_chunks() -> AsyncGenerator[bytes, None]:
    yield b"one"
    yield b"two"


async def test_chunks_are_sent_as_they_are_made_without_a_length() -> None:
    permits = StreamPermits(1)
    stream = Stream(two_chunks(), permits)
    assert not is_free(permits)
    await stream.run()
    start, *bodies = stream.sent
    assert (start["type"], start["status"]) == ("http.response.start", 200)
    headers = dict(start["headers"])
    assert (headers[b"content-type"], headers[b"x-a"]) == (b"text/x; charset=utf-8", b"1")
    assert b"content-length" not in headers
    assert [(m["body"], m["more_body"]) for m in bodies] == [
        (b"one", True),
        (b"two", True),
        (b"", False),
    ]
    assert (is_free(permits), stream.ends) == (True, 1)


async def test_stream_without_a_permit_sends_nothing_and_ends() -> None:
    permits = StreamPermits(1)
    permits.acquire()
    ends: list[int] = []
    with pytest.raises(TooManyStreamsError):
        StreamedResponse(two_chunks(), "text/x", {}, permits, lambda: ends.append(1))
    assert ends == [1]
    permits.release()
    assert is_free(permits)


@pytest.mark.parametrize("error", [RuntimeError("broke"), ClientDisconnect()])
async def test_stream_that_fails_gives_its_permit_back(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    closed = False

    async def failing() -> AsyncGenerator[bytes, None]:
        nonlocal closed
        try:
            yield b"one"
            raise error
        finally:
            closed = True

    permits = StreamPermits(1)
    stream = Stream(failing(), permits)
    with caplog.at_level(logging.INFO, "service.http.streaming"):
        if isinstance(error, ClientDisconnect):
            await stream.run()
            assert caplog.messages == ["the client of a stream went away"]
        else:
            with pytest.raises(RuntimeError, match="broke"):
                await stream.run()
            assert caplog.messages == []
    assert (is_free(permits), stream.ends, closed) == (True, 1, True)
    assert [m.get("body") for m in stream.sent] == [None, b"one"]


async def test_client_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "STALL_SECONDS", 0.01)
    permits = StreamPermits(1)
    stream = Stream(two_chunks(), permits)

    async def stuck(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        await stream.response({"type": "http"}, Channel(), stuck)
    assert (is_free(permits), stream.ends) == (True, 1)


async def test_response_leaves_the_request_body_to_its_reader() -> None:
    """The chunks are made of the body while it arrives: nobody else may take its messages."""
    channel = Channel(chunk(b"a"), chunk(b"b", more=False))
    body = Body(channel)

    async def upper(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        async for c in chunks:
            yield c.upper()

    sent: list[bytes] = []

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))

    response = StreamedResponse(upper(body.chunks()), "text/x", {}, StreamPermits(1), body.close)
    await response({"type": "http"}, channel, send)
    assert b"".join(sent) == b"AB"


def test_headers_name_the_model() -> None:
    assert model_headers(query_of()) == {
        "X-Model-Name": "dummy",
        "X-Model-Version": "1",
        "X-Model-Digest": "0" * 64,
    }
