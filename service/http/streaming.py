"""Request bodies that are read, and responses that are written, while the other is under way."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from service.bulk.flow import StreamPermits, TooManyStreamsError
from service.bulk.ndjson import STALL_SECONDS
from service.core.engine import PredictionQuery
from service.formats.answers import model
from service.formats.inflating import BrokenEncodingError

log = logging.getLogger(__name__)
_READ_AHEAD_BYTES = 1024**2
Result = TypeVar("Result")


class StreamedResponse(Response):
    """Response whose body is produced while it is sent, possibly while the request body arrives.

    Starlette's own streaming response calls `receive` to detect a disconnect. This one leaves
    `receive` to the reader of the request body.
    """

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        media_type: str,
        headers: dict[str, str],
        permits: StreamPermits,
        on_end: Callable[[], None],
    ) -> None:
        """Acquire a permit and prepare to send.

        Args:
            chunks: the body; closed at the end.
            media_type: content type.
            headers: further headers.
            permits: permits of concurrent streams; the one acquired here is released at the end.
            on_end: called once, when the stream has ended or could not begin.

        Raises:
            TooManyStreamsError: all permits are taken; nothing was sent.
        """
        super().__init__(media_type=media_type, headers=headers)
        del self.headers["content-length"]
        try:
            permits.acquire()
        except TooManyStreamsError:
            on_end()
            raise
        self._chunks, self._permits, self._on_end = chunks, permits, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the body, or give up when the client reads nothing for `STALL_SECONDS`."""
        try:
            start = {"type": "http.response.start", "status": self.status_code}
            await send({**start, "headers": self.raw_headers})
            async for chunk in self._chunks:
                async with asyncio.timeout(STALL_SECONDS):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except ClientDisconnect:
            log.info("the client of a stream went away")
        finally:
            self._permits.release()
            self._on_end()
            await self._chunks.aclose()


def model_headers(query: PredictionQuery) -> dict[str, str]:
    """Return the `X-Model-*` headers: name, version and digest of the model that answers."""
    fields = model(query.engine.info)
    return {f"X-Model-{name.capitalize()}": value for name, value in fields.items()}


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result | None:
    """Await some work, or cancel it when the client disconnects.

    Args:
        receive: the ASGI receive channel, whose body has been read.
        work: the coroutine to run.

    Returns:
        The result of the work; None if the client has disconnected.
    """
    task = asyncio.create_task(work)
    disconnected = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        disconnected.cancel()


class Body:
    """Request body that is read ahead while it arrives, and notices a disconnect.

    A server reports a disconnect only to a pending `receive`, so a task always reads ahead, up to 1
    MiB.

    Attributes:
        disconnected: future that is done once the client has disconnected.
    """

    def __init__(self, receive: Receive) -> None:
        self.disconnected: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._broken: BrokenEncodingError | None = None
        self._chunks: deque[bytes] = deque()
        self._complete = False
        self._changed = asyncio.Event()
        self._reading = asyncio.create_task(self._read(receive), name="read body")

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the chunks of the body as they arrive.

        Raises:
            ClientDisconnect: the client has disconnected.
            BrokenEncodingError: the body cannot be decompressed; the readable chunks came before.
        """
        while True:
            while self._chunks:
                chunk = self._chunks.popleft()
                self._changed.set()
                yield chunk
            if self.disconnected.done():
                raise ClientDisconnect
            if self._broken is not None:
                raise self._broken
            if self._complete:
                return
            self._changed.clear()
            await self._changed.wait()

    def close(self) -> None:
        """Stop reading."""
        self._reading.cancel()

    async def _read(self, receive: Receive) -> None:
        while not self.disconnected.done():
            while sum(map(len, self._chunks)) > _READ_AHEAD_BYTES:
                self._changed.clear()
                await self._changed.wait()
            try:
                message = await receive()
            except BrokenEncodingError as error:
                self._broken = error
                self._changed.set()
                return
            if message["type"] == "http.disconnect":
                self.disconnected.set_result(None)
            else:
                self._chunks.append(message.get("body", b""))
                self._complete = not message.get("more_body", False)
            self._changed.set()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
