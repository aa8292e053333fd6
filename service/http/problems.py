"""Errors as RFC 9457 problem details: the one place where an error becomes an HTTP status."""

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
# nginx's status for a client that went away; nobody reads it but metrics and logs.
CLIENT_CLOSED_REQUEST = 499
# Phrases of RFC 9110, which are newer than Python's.
_PHRASES = {
    413: "Content Too Large",
    422: "Unprocessable Content",
    CLIENT_CLOSED_REQUEST: "Client Closed Request",
}
_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed"}
_LONGEST_ECHO = 400


class ProblemError(HTTPException):
    """HTTP error with a status, a stable code and a sentence.

    It is an HTTPException because FastAPI turns any other exception that is raised while a body is
    read into a 400.

    Attributes:
        code: stable name of the problem.
        extensions: further members of the problem's JSON.
    """

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
    """Create a problem details response.

    Args:
        status: HTTP status.
        code: stable name of the problem.
        detail: sentence about this occurrence.
        headers: further response headers.
        extensions: further members of the JSON body.
    """
    title = _PHRASES.get(status) or HTTPStatus(status).phrase
    body = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": printable(detail),
        "code": code,
        **extensions,
    }
    return Response(orjson.dumps(body), status, headers, MEDIA_TYPE)


def printable(text: str) -> str:
    """Return a client's text in a form that can be sent back.

    Lone surrogates, which UTF-8 cannot encode, are replaced; a text over 400 characters is cut.
    """
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= _LONGEST_ECHO else text[: _LONGEST_ECHO - 3] + "..."


def too_large(setting: str, limit: int) -> ProblemError:
    """Return the 413 problem for a body over a limit.

    Args:
        setting: name of the setting that holds the limit.
        limit: the limit in bytes.
    """
    return ProblemError(
        413,
        "body_too_large",
        f"got a body of more than {limit} bytes ({setting})",
        limit={setting: limit},
    )


def too_slow(seconds: float) -> ProblemError:
    """Return the 408 problem for a body that took more than `seconds` to arrive."""
    return ProblemError(
        408,
        "body_too_slow",
        f"the body took more than {seconds:g} s to come",
        {"Connection": "close"},
    )


def not_ready() -> ProblemError:
    """Return the 503 problem for a service that is starting or stopping."""
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
    if isinstance(error.body, bytes):  # FastAPI does not parse a body that is not declared as JSON
        content_type = request.headers.get("content-type", "none")
        return problem(
            415,
            "unsupported_media_type",
            f"got content type {content_type}, expected application/json",
            {"Accept": "application/json"},
        )
    fields = [
        {
            "pointer": printable(_pointer(item["loc"])),
            "detail": printable(item["msg"].removeprefix("Value error, ")),
        }
        for item in errors
    ]
    return problem(
        422, "invalid_request", f"{fields[0]['pointer']}: {fields[0]['detail']}", errors=fields[:20]
    )


def _pointer(location: tuple[int | str, ...]) -> str:
    """Return the JSON pointer (RFC 6901, as a URI fragment) of a value in the body.

    For a parameter, return its kind and its name.
    """
    if location[0] != "body":
        return " ".join(map(str, location))
    tokens = (str(token).replace("~", "~0").replace("/", "~1") for token in location[1:])
    return "#" + "".join(f"/{token}" for token in tokens)


# Any, because Starlette types every handler as one for all exceptions.
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
    """Register a problem details response for every known exception.

    Unknown exceptions are answered by the outermost middleware.
    """
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, partial(_handle, handler))


async def _handle(handler: Any, request: Request, error: Exception) -> Response:
    return in_protocol_form(request.url.path, await handler(request, error))


def in_protocol_form(path: str, response: Response) -> Response:
    """Add the member `error` that clients of the Open Inference Protocol read.

    Args:
        path: path of the request; only paths under `/v2` are changed.
        response: a problem details response.
    """
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
