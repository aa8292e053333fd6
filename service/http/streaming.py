"""service.http.streaming"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from service.bulk.flow import StreamPlaces, TooManyStreamsError, log
from service.bulk.ndjson import STALL_SECONDS
from service.core.engine import PredictionQuery
from service.formats.answers import model
from service.formats.inflating import BrokenEncodingError


class StreamedResponse(Response):
    """A body that is made while it is sent, and while the request's body may still be coming: so it
    leaves `receive` to who reads that.

    Starlette's own takes messages off `receive` to see whether the client is there.
    """

    def __init__(
        self,
        parts: AsyncGenerator[bytes, None],
        media_type: str,
        headers: dict[str, str],
        places: StreamPlaces,
        on_end: Callable[[], None],
    ) -> None:
        """Prepare to send `parts`. Raises TooManyStreamsError if there is no place for another
        stream; then nothing has been sent."""
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
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
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


def model_headers(query: PredictionQuery) -> dict[str, str]:
    """Which model answers, where the body has no place for it."""
    return {
        f"X-Model-{name.capitalize()}": value for name, value in model(query.engine.info).items()
    }


T = TypeVar("T")
_READ_AHEAD_BYTES = 1024**2


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of the work, or None if the client went away: its molecules then leave the
    queue."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        gone.cancel()


class Body:
    """The body of a request while it comes, and news of its client.

    It reads ahead, up to `_READ_AHEAD_BYTES`: a server tells that a client has gone away only to
    who asks for the next part of the body.

    Attributes:
        gone: done when the client has gone away.
    """

    def __init__(self, receive: Receive) -> None:
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._broken: BrokenEncodingError | None = None
        self._parts: deque[bytes] = deque()
        self._complete = False
        self._changed = asyncio.Event()
        self._reading = asyncio.create_task(self._read(receive), name="read body")

    async def parts(self) -> AsyncIterator[bytes]:
        """As they come. Raises ClientDisconnect, or BrokenEncodingError after all that could be
        read."""
        while True:
            while self._parts:
                part = self._parts.popleft()
                self._changed.set()
                yield part
            if self.gone.done():
                raise ClientDisconnect
            if self._broken is not None:
                raise self._broken
            if self._complete:
                return
            self._changed.clear()
            await self._changed.wait()

    def close(self) -> None:
        """Read no more."""
        self._reading.cancel()

    async def _read(self, receive: Receive) -> None:
        while not self.gone.done():
            while sum(map(len, self._parts)) > _READ_AHEAD_BYTES:
                self._changed.clear()
                await self._changed.wait()
            try:
                message = await receive()
            except BrokenEncodingError as error:
                self._broken = error
                self._changed.set()
                return
            if message["type"] == "http.disconnect":
                self.gone.set_result(None)
            else:
                self._parts.append(message.get("body", b""))
                self._complete = not message.get("more_body", False)
            self._changed.set()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
