"""Errors as RFC 9457 problem details. The one place where an error becomes a status."""

from collections.abc import Mapping, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from service.bulk.flow import TooManyStreamsError
from service.core.batcher import DeadlineExceededError, QueueClosedError, QueueFullError
from service.core.engine import UnsupportedQueryError
from service.core.models import UnknownModelError
from service.formats.inflating import BrokenEncodingError
from service.security import RateLimitedError

MEDIA_TYPE = "application/problem+json"
# nobody is left to read it; it is what proxies and dashboards call the case
CLIENT_CLOSED_REQUEST = 499
# RFC 9110's, newer than Python's
_PHRASES = {
    413: "Content Too Large",
    422: "Unprocessable Content",
    CLIENT_CLOSED_REQUEST: "Client Closed Request",
}
_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed"}
_LONGEST_ECHO = 400


class ProblemError(HTTPException):
    """An error with a status, a stable code and a sentence; an HTTPException, so that FastAPI lets
    it pass wherever it is raised."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        headers: Mapping[str, str] | None = None,
        **extensions: Any,
    ) -> None:
        super().__init__(status, detail, headers)
        self.code, self.extensions = code, extensions


def problem(
    status: int, code: str, detail: str, headers: Mapping[str, str] | None = None, **extensions: Any
) -> Response:
    """A problem details response."""
    title = _PHRASES.get(status) or HTTPStatus(status).phrase
    body = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": clean(detail),
        "code": code,
        **extensions,
    }
    return Response(orjson.dumps(body), status, headers, MEDIA_TYPE)


def clean(text: str) -> str:
    """A text that may hold what a client sent: no lone surrogates, which UTF-8 cannot carry, and no
    end of it."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= _LONGEST_ECHO else text[: _LONGEST_ECHO - 3] + "..."


def too_large(setting: str, limit: int) -> ProblemError:
    """The body passes the limit."""
    return ProblemError(
        413,
        "body_too_large",
        f"got a body of more than {limit} bytes ({setting})",
        limit={setting: limit},
    )


def too_slow(seconds: float) -> ProblemError:
    """The body comes too slowly."""
    return ProblemError(
        408,
        "body_too_slow",
        f"the body took more than {seconds:g} s to come",
        {"Connection": "close"},
    )


def not_ready() -> ProblemError:
    """No engine, or a service that is stopping."""
    return ProblemError(
        503, "not_ready", "the service is starting or stopping", {"Retry-After": "1"}
    )


async def _on_http_exception(_: Request, error: HTTPException) -> Response:
    if isinstance(error, ProblemError):
        return problem(
            error.status_code, error.code, error.detail, error.headers, **error.extensions
        )
    code = _CODES.get(error.status_code, f"http_{error.status_code}")
    return problem(error.status_code, code, error.detail, error.headers)


async def _on_broken_encoding(_: Request, error: BrokenEncodingError) -> Response:
    return problem(400, "bad_request", error.detail)


async def _on_queue_full(_: Request, error: QueueFullError) -> Response:
    return problem(429, "queue_full", str(error), {"Retry-After": str(error.retry_after_seconds)})


async def _on_rate_limited(_: Request, error: RateLimitedError) -> Response:
    return problem(429, "rate_limited", str(error), {"Retry-After": str(error.retry_after_seconds)})


async def _on_too_many_streams(_: Request, __: TooManyStreamsError) -> Response:
    return problem(
        429,
        "too_many_streams",
        "all places for streams are taken (max_streams)",
        {"Retry-After": "5"},
    )


async def _on_deadline(_: Request, __: DeadlineExceededError) -> Response:
    return problem(
        504,
        "deadline_exceeded",
        "the answer would have come after the deadline (X-Request-Timeout,"
        " request_timeout_seconds)",
    )


async def _on_unknown_model(_: Request, error: UnknownModelError) -> Response:
    return problem(422, "unknown_model", str(error))


async def _on_unsupported_query(_: Request, error: UnsupportedQueryError) -> Response:
    return problem(422, error.code, str(error), **error.details)


async def _on_queue_closed(request: Request, _: QueueClosedError) -> Response:
    return await _on_http_exception(request, not_ready())


async def _on_invalid_request(request: Request, error: RequestValidationError) -> Response:
    errors: Sequence[Any] = error.errors()
    first = errors[0]
    if first["type"] == "json_invalid":
        return problem(
            400,
            "invalid_json",
            f"the body is not JSON: {first['ctx']['error']} at character {first['loc'][-1]}",
        )
    if isinstance(error.body, bytes):  # FastAPI leaves a body that is not declared as JSON unread
        content_type = request.headers.get("content-type", "none")
        return problem(
            415,
            "unsupported_media_type",
            f"got content type {content_type}, expected application/json",
            {"Accept": "application/json"},
        )
    fields = [
        {
            "pointer": clean(_pointer(item["loc"])),
            "detail": clean(item["msg"].removeprefix("Value error, ")),
        }
        for item in errors
    ]
    return problem(
        422, "invalid_request", f"{fields[0]['pointer']}: {fields[0]['detail']}", errors=fields[:20]
    )


def _pointer(location: tuple[int | str, ...]) -> str:
    """JSON pointer (RFC 6901, as a URI fragment) of a place in the body; of a parameter, where it
    is and its name."""
    if location[0] != "body":
        return " ".join(map(str, location))
    return "#" + "".join(
        "/" + str(part).replace("~", "~0").replace("/", "~1") for part in location[1:]
    )


# Any: Starlette types every handler as one of all exceptions.
_HANDLERS: dict[type[Exception], Any] = {
    HTTPException: _on_http_exception,
    BrokenEncodingError: _on_broken_encoding,
    RequestValidationError: _on_invalid_request,
    QueueFullError: _on_queue_full,
    QueueClosedError: _on_queue_closed,
    RateLimitedError: _on_rate_limited,
    TooManyStreamsError: _on_too_many_streams,
    DeadlineExceededError: _on_deadline,
    UnknownModelError: _on_unknown_model,
    UnsupportedQueryError: _on_unsupported_query,
}


def install_handlers(app: FastAPI) -> None:
    """Answer every error of an application with problem details; what is not foreseen is answered
    by the outermost middleware."""
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, partial(_handle, handler))


async def _handle(handler: Any, request: Request, error: Exception) -> Response:
    return as_protocol(request.url.path, await handler(request, error))


def as_protocol(path: str, response: Response) -> Response:
    """Clients of the Open Inference Protocol look for the sentence under `error`."""
    if not path.startswith("/v2"):
        return response
    body = orjson.loads(response.body)
    body["error"] = body["detail"]
    headers = {
        name: value
        for name, value in response.headers.items()
        if name not in ("content-length", "content-type")
    }
    return Response(orjson.dumps(body), response.status_code, headers, MEDIA_TYPE)
