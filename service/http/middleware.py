"""What happens around every request. Plain ASGI: Starlette's `BaseHTTPMiddleware` costs 0.6 to 0.9
ms per request."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.formats.inflating import ENCODINGS, UnknownEncodingError, inflater_of
from service.http.problems import CLIENT_CLOSED_REQUEST, as_protocol, problem, too_large, too_slow
from service.security import Client, KeyRing
from service.telemetry.logs import request_id
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import span

log = logging.getLogger(__name__)
access_log = logging.getLogger("service.access")
REQUEST_ID = "x-request-id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}
_QUIET = frozenset({"/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})


class ObserveRequests:
    """Outermost: gives every request an id, counts, times, logs and traces it, and turns an error
    that nobody foresaw into a problem."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Sequence[BaseRoute]) -> None:
        self._app, self._metrics, self._routes = app, metrics, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = scope["arrived"] = time.perf_counter()
        headers = Headers(scope=scope)
        identity, route = _request_id(headers), self._route_of(scope)
        token = request_id.set(identity)
        status: int | None = None

        async def send_and_count(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                # counted before it leaves: who has the answer finds it in the metrics
                status = message["status"]
                self._metrics.request_answered(route, scope["method"], message["status"])
                answer = MutableHeaders(scope=message)
                answer[REQUEST_ID] = identity
                for name, value in _SECURITY_HEADERS.items():
                    answer.setdefault(name, value)
            await send(message)

        try:
            with span(
                "request",
                headers,
                method=scope["method"],
                path=scope["path"][:200],
                request_id=identity,
            ) as current:
                try:
                    await self._app(scope, receive, send_and_count)
                except Exception:
                    log.exception("request failed: %s %s", scope["method"], route)
                    if status is not None:
                        raise
                    await problem(
                        500,
                        "internal",
                        "the service failed; its log says more under this request id",
                    )(scope, receive, send_and_count)
                if current is not None and status is not None:
                    current.set_attribute("status", status)
        finally:
            seconds = time.perf_counter() - started
            if status is None:
                status = CLIENT_CLOSED_REQUEST
                self._metrics.request_answered(route, scope["method"], status)
            self._metrics.request_ended(route, seconds)
            if route not in _QUIET:
                client = scope.get("client_of_key")
                access_log.info(
                    "request",
                    extra={
                        "method": scope["method"],
                        "route": route,
                        "status": status,
                        "seconds": round(seconds, 6),
                        "client": client.name if client is not None else None,
                    },
                )
            request_id.reset(token)

    def _route_of(self, scope: Scope) -> str:
        """The pattern that the path is one of: a bounded label, where the path is not.

        Looked up before routing: a request that is refused on the way there counts under its route
        all the same.
        """
        matching = (route for route in self._routes if route.matches(scope)[0] is not Match.NONE)
        return getattr(next(matching, None), "path", "unmatched")


def _request_id(headers: Headers) -> str:
    """The client's own id if it is harmless in a log, otherwise a new one."""
    given = headers.get(REQUEST_ID, "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


class Authenticate:
    """Before a body is read: who asks, and whether they may.

    Probes, metrics and the documentation are open. Where there are keys, all else needs one, and
    `/admin` one of an admin; where there are none, predictions are open and `/admin` is closed.
    """

    _OPEN = frozenset(
        {
            "/",
            "/docs",
            "/openapi.json",
            "/healthz",
            "/readyz",
            "/metrics",
            "/v2/health/live",
            "/v2/health/ready",
        }
    )

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or self._is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        admin = scope["path"] == "/admin" or scope["path"].startswith("/admin/")
        key = _key(Headers(scope=scope))
        client = self._keys.client_of(key) if key is not None and not self._keys.is_empty else None
        scope["client_of_key"] = client
        refusal = self._refusal(admin, key, client)
        await (self._app if refusal is None else as_protocol(scope["path"], refusal))(
            scope, receive, send
        )

    def _is_open(self, path: str) -> bool:
        return path in self._OPEN or path.startswith("/docs/")

    def _refusal(self, admin: bool, key: str | None, client: Client | None) -> Response | None:
        if self._keys.is_empty:
            return (
                problem(
                    403,
                    "admin_disabled",
                    "there are no keys, and without an admin's key nothing is changed",
                )
                if admin
                else None
            )
        if client is None:
            detail = (
                "expected a key: `Authorization: Bearer <key>` or `X-API-Key: <key>`"
                if key is None
                else "the key is not known"
            )
            return problem(401, "unauthorized", detail, {"WWW-Authenticate": "Bearer"})
        return (
            problem(403, "forbidden", f"the key {client.name} is not an admin's")
            if admin and not client.admin
            else None
        )


def _key(headers: Headers) -> str | None:
    if (given := headers.get("x-api-key")) is not None:
        return given
    kind, _, value = headers.get("authorization", "").partition(" ")
    return value.strip() if kind.lower() == "bearer" else None


class HeadAsGet:
    """Answers HEAD wherever GET is answered, as HTTP wants it: with the same headers and no body.
    Load balancers probe with it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_no_body(message: Message) -> None:
            await send(
                {**message, "body": b""} if message["type"] == "http.response.body" else message
            )

        await self._app({**scope, "method": "GET"}, receive, send_no_body)


class InflateBody:
    """Inflates a body that comes compressed, a piece at a time. What is inside of this sees it as
    if it had come as it is, limits included."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = MutableHeaders(raw=list(scope["headers"]))
        try:
            inflater = inflater_of(", ".join(headers.getlist("content-encoding")))
        except UnknownEncodingError as error:
            understood = {"Accept-Encoding": ", ".join(ENCODINGS)}
            refusal = problem(415, "unsupported_encoding", str(error), understood)
            await as_protocol(scope["path"], refusal)(scope, receive, send)
            return
        if inflater is None:
            await self._app(scope, receive, send)
            return
        del headers["content-encoding"], headers["content-length"]  # of what came
        pieces: Iterator[bytes] = iter(())
        complete = handed_on = False

        async def receive_piece() -> Message:
            nonlocal pieces, complete, handed_on
            while True:
                if (piece := next(pieces, None)) is not None:
                    await asyncio.sleep(0)  # others' turn: there may be a thousand pieces
                    return {"type": "http.request", "body": piece, "more_body": True}
                if complete and not handed_on:
                    handed_on = True
                    return {"type": "http.request", "body": b"", "more_body": False}
                message = await receive()
                if message["type"] != "http.request":
                    return message
                complete = not message.get("more_body", False)
                pieces = inflater.pieces(message.get("body", b""), last=complete)

        await self._app({**scope, "headers": headers.raw}, receive_piece, send)


@dataclass(frozen=True)
class BodyLimit:
    """What a body may be.

    Attributes:
        name: of the setting.
        max_bytes: its length.
        seconds: in which all of it must have come.
    """

    name: str
    max_bytes: int
    seconds: float


class LimitBody:
    """Refuses a body that is too large: by its declared length at once, otherwise as soon as it has
    grown too large. And one that comes too slowly: it would hold its connection for as long as its
    sender likes."""

    def __init__(self, app: ASGIApp, limits: Callable[[str], BodyLimit | None]) -> None:
        """Limit bodies by path; None: the route sets its own limits."""
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        limit = self._limits(scope["path"]) if scope["type"] == "http" else None
        if limit is None:
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        too_long = declared.isdecimal() and (len(declared) > 18 or int(declared) > limit.max_bytes)
        received, complete = 0, False
        deadline = time.monotonic() + limit.seconds

        async def receive_some() -> Message:
            nonlocal received, complete
            if too_long:
                raise too_large(limit.name, limit.max_bytes)
            if complete:
                return await receive()  # only waits for the client to go away
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                raise too_slow(limit.seconds) from None
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > limit.max_bytes:
                raise too_large(limit.name, limit.max_bytes)
            return message

        await self._app(scope, receive_some, send)
