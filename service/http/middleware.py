"""ASGI middleware around every request.

It is plain ASGI: Starlette's `BaseHTTPMiddleware` costs 0.6 to 0.9 ms per request.
"""

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
from service.http.problems import (
    CLIENT_CLOSED_REQUEST,
    in_protocol_form,
    problem,
    too_large,
    too_slow,
)
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
_UNLOGGED = frozenset({"/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})


class ObserveRequests:
    """Outermost middleware: request id, security headers, metrics, access log and trace.

    An exception that no handler knows is logged and answered with a 500 problem.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Sequence[BaseRoute]) -> None:
        self._app, self._metrics, self._routes = app, metrics, routes
        self._literal: set[str] = set()  # paths that are their own pattern

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = scope["arrived"] = time.perf_counter()
        headers = Headers(scope=scope)
        identifier, route = _request_id(headers), self._route_of(scope)
        token = request_id.set(identifier)
        status: int | None = None

        async def send_and_count(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                # Counted before it is sent, so that whoever has the answer finds it in the metrics.
                status = message["status"]
                self._metrics.request_answered(route, scope["method"], message["status"])
                response_headers = MutableHeaders(scope=message)
                response_headers[REQUEST_ID] = identifier
                for name, value in _SECURITY_HEADERS.items():
                    response_headers.setdefault(name, value)
            await send(message)

        try:
            with span(
                "request",
                headers,
                method=scope["method"],
                path=scope["path"][:200],
                request_id=identifier,
            ) as current:
                try:
                    await self._app(scope, receive, send_and_count)
                except Exception:
                    log.exception("request failed: %s %s", scope["method"], route)
                    if status is not None:
                        raise
                    detail = "the service failed; its log says more under this request id"
                    await problem(500, "internal", detail)(scope, receive, send_and_count)
                if current is not None and status is not None:
                    current.set_attribute("status", status)
        finally:
            seconds = time.perf_counter() - started
            if status is None:
                status = CLIENT_CLOSED_REQUEST
                self._metrics.request_answered(route, scope["method"], status)
            self._metrics.request_ended(route, seconds)
            if route not in _UNLOGGED:
                client = scope.get("client_of_key")
                facts = {
                    "method": scope["method"],
                    "route": route,
                    "status": status,
                    "seconds": round(seconds, 6),
                    "client": client.name if client is not None else None,
                }
                access_log.info("request", extra=facts)
            request_id.reset(token)

    def _route_of(self, scope: Scope) -> str:
        """Return the path pattern that a request matches, or "unmatched".

        Metrics take the pattern as label, because the set of patterns is bounded and the set of
        paths is not. It is looked up before routing, so that a request refused by an inner
        middleware counts under its route too.
        """
        path: str = scope["path"]
        if path in self._literal:  # asking every route takes a quarter of a millisecond
            return path
        matching = (route for route in self._routes if route.matches(scope)[0] is not Match.NONE)
        pattern: str = getattr(next(matching, None), "path", "unmatched")
        if pattern == path:
            self._literal.add(path)
        return pattern


def _request_id(headers: Headers) -> str:
    """Return the client's request id if it is safe to log, otherwise a new one."""
    given = headers.get(REQUEST_ID, "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


class Authenticate:
    """Check the API key before the body is read.

    Probes, metrics and the documentation are open. Where there are keys, every other route needs
    one, and `/admin` an admin's. Where there are none, predictions are open and `/admin` is closed.
    """

    _OPEN = frozenset(
        {
            "/",
            "/docs",
            "/guide",
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
        """Handle one request."""
        if scope["type"] != "http" or self._is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        admin = scope["path"] == "/admin" or scope["path"].startswith("/admin/")
        key = _key(Headers(scope=scope))
        client = self._keys.client_of(key) if key is not None and not self._keys.is_empty else None
        scope["client_of_key"] = client
        refusal = self._refusal(admin, key, client)
        answer = self._app if refusal is None else in_protocol_form(scope["path"], refusal)
        await answer(scope, receive, send)

    def _is_open(self, path: str) -> bool:
        return path in self._OPEN or path.startswith(("/docs/", "/guide/", "/page/"))

    def _refusal(self, admin: bool, key: str | None, client: Client | None) -> Response | None:
        if self._keys.is_empty:
            detail = "there are no keys, and without an admin's key nothing is changed"
            return problem(403, "admin_disabled", detail) if admin else None
        if client is None:
            detail = "the key is not known"
            if key is None:
                detail = "expected a key: `Authorization: Bearer <key>` or `X-API-Key: <key>`"
            return problem(401, "unauthorized", detail, {"WWW-Authenticate": "Bearer"})
        if admin and not client.admin:
            return problem(403, "forbidden", f"the key {client.name} is not an admin's")
        return None


def _key(headers: Headers) -> str | None:
    if (given := headers.get("x-api-key")) is not None:
        return given
    kind, _, value = headers.get("authorization", "").partition(" ")
    return value.strip() if kind.lower() == "bearer" else None


class HeadAsGet:
    """Answer HEAD like GET, with the same headers and no body, as HTTP requires.

    Load balancers probe with HEAD.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_no_body(message: Message) -> None:
            is_body = message["type"] == "http.response.body"
            await send({**message, "body": b""} if is_body else message)

        await self._app({**scope, "method": "GET"}, receive, send_no_body)


class InflateBody:
    """Decompress a request body (`Content-Encoding`), chunk by chunk.

    Inner middleware and routes see the decompressed body, so that their size limits apply to it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = MutableHeaders(raw=list(scope["headers"]))
        try:
            inflater = inflater_of(", ".join(headers.getlist("content-encoding")))
        except UnknownEncodingError as error:
            supported = {"Accept-Encoding": ", ".join(ENCODINGS)}
            refusal = problem(415, "unsupported_encoding", str(error), supported)
            await in_protocol_form(scope["path"], refusal)(scope, receive, send)
            return
        if inflater is None:
            await self._app(scope, receive, send)
            return
        del headers["content-encoding"], headers["content-length"]  # of the compressed body
        chunks: Iterator[bytes] = iter(())
        complete = ended = False

        async def receive_chunk() -> Message:
            nonlocal chunks, complete, ended
            while True:
                if (chunk := next(chunks, None)) is not None:
                    await asyncio.sleep(0)  # other requests' turn: there may be a thousand chunks
                    return {"type": "http.request", "body": chunk, "more_body": True}
                if complete and not ended:
                    ended = True
                    return {"type": "http.request", "body": b"", "more_body": False}
                message = await receive()
                if message["type"] != "http.request":
                    return message
                complete = not message.get("more_body", False)
                chunks = inflater.chunks(message.get("body", b""), last=complete)

        await self._app({**scope, "headers": headers.raw}, receive_chunk, send)


@dataclass(frozen=True)
class BodyLimit:
    """Limits on a request body.

    Attributes:
        name: setting that holds `max_bytes`.
        max_bytes: largest size.
        seconds: time within which the whole body must arrive.
    """

    name: str
    max_bytes: int
    seconds: float


class LimitBody:
    """Refuse a request body that is too large or arrives too slowly.

    The declared length is checked first, then the bytes received. A body that never ends would hold
    its connection open for as long as the client likes.
    """

    def __init__(self, app: ASGIApp, limits: Callable[[str], BodyLimit | None]) -> None:
        """Create the middleware.

        Args:
            app: the inner application.
            limits: maps a path to its limits; None where the route has limits of its own.
        """
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        limit = self._limits(scope["path"]) if scope["type"] == "http" else None
        if limit is None:
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        too_long = declared.isdecimal() and (len(declared) > 18 or int(declared) > limit.max_bytes)
        received, complete = 0, False
        deadline = time.monotonic() + limit.seconds

        async def receive_limited() -> Message:
            nonlocal received, complete
            if too_long:
                raise too_large(limit.name, limit.max_bytes)
            if complete:
                return await receive()  # which now waits for a disconnect
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

        await self._app(scope, receive_limited, send)
