"""Every error that a route can raise, as the problem details that a client gets."""

import json
from typing import Annotated

import httpx
import pytest
from fastapi import Body, FastAPI
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from service.bulk.flow import TooManyStreamsError
from service.core.batcher import DeadlineExceededError, QueueClosedError, QueueFullError
from service.core.models import UnknownModelError
from service.formats.inflating import BrokenEncodingError
from service.http.problems import (
    ProblemError,
    in_protocol_form,
    install_handlers,
    printable,
    problem,
    too_large,
    too_slow,
)
from service.security import Client, RateLimitedError
from tests.service.doubles import check_problem, client_of

LAB = Client(name="lab", sha256="0" * 64, molecules_per_minute=10)


def content(response: Response) -> object:
    return json.loads(bytes(response.body))


@pytest.mark.parametrize(
    ("status", "title"),
    [
        (404, "Not Found"),
        (413, "Content Too Large"),
        (422, "Unprocessable Content"),
        (429, "Too Many Requests"),
        (499, "Client Closed Request"),
    ],
)
def test_problem_has_the_members_of_the_standard(status: int, title: str) -> None:
    response = problem(status, "some_code", "why", {"Retry-After": "3"}, limit={"max_atoms": 5})
    assert (response.status_code, response.headers["retry-after"]) == (status, "3")
    assert response.headers["content-type"] == "application/problem+json"
    assert content(response) == {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": "why",
        "code": "some_code",
        "limit": {"max_atoms": 5},
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("as it is", "as it is"),
        ("a\ud800b", "a?b"),
        ("x" * 400, "x" * 400),
        ("x" * 401, "x" * 397 + "..."),
        ("", ""),
    ],
)
def test_text_of_a_client_is_short_and_can_be_encoded(text: str, expected: str) -> None:
    assert printable(text) == expected


def test_protocol_form_says_the_sentence_twice_and_keeps_the_headers() -> None:
    plain = problem(429, "queue_full", "try again", {"Retry-After": "7"})
    assert in_protocol_form("/predict", plain) is plain
    changed = in_protocol_form("/v2/models/x/infer", plain)
    assert (changed.status_code, changed.headers["retry-after"]) == (429, "7")
    assert changed.headers["content-length"] == str(len(bytes(changed.body)))
    expected = {**json.loads(bytes(plain.body)), "error": "try again"}
    assert content(changed) == expected


class _Item(BaseModel):
    name: int


class _Request(BaseModel):
    items: list[_Item]


async def answer_to(error: Exception) -> httpx.Response:
    """The response of an application whose only route raises an error."""
    app = FastAPI()
    install_handlers(app)

    @app.get("/broken")
    async def broken() -> None:
        raise error

    async with client_of(app) as client:
        return await client.get("/broken")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("error", "status", "code", "detail", "headers"),
    [
        (HTTPException(404), 404, "not_found", "Not Found", {}),
        (HTTPException(418, "no coffee"), 418, "http_418", "no coffee", {}),
        (
            ProblemError(409, "clash", "why not", {"x-a": "1"}),
            409,
            "clash",
            "why not",
            {"x-a": "1"},
        ),
        (BrokenEncodingError("got gzip"), 400, "bad_request", "got gzip", {}),
        (
            QueueFullError(9),
            *(429, "queue_full", "the queue is full, try again in 9 s", {"retry-after": "9"}),
        ),
        (
            QueueClosedError(),
            *(503, "not_ready", "the service is starting or stopping", {"retry-after": "1"}),
        ),
        (
            RateLimitedError(LAB, 12),
            429,
            "rate_limited",
            "the key lab may ask for 10 molecules a minute, try again in 12 s",
            {"retry-after": "12"},
        ),
        (
            TooManyStreamsError(),
            429,
            "too_many_streams",
            "all places for streams are taken (max_streams)",
            {"retry-after": "5"},
        ),
        (
            DeadlineExceededError(),
            504,
            "deadline_exceeded",
            "the answer would have come after the deadline (X-Request-Timeout,"
            " request_timeout_seconds)",
            {},
        ),
        (
            UnknownModelError("x", ["a", "b"]),
            *(422, "unknown_model", "got unknown model 'x', expected one of a, b", {}),
        ),
        (
            too_large("max_body_bytes", 9),
            *(413, "body_too_large", "got a body of more than 9 bytes (max_body_bytes)", {}),
        ),
        (
            too_slow(1.5),
            *(408, "body_too_slow", "the body took more than 1.5 s to come"),
            {"connection": "close"},
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_error_has_one_status_and_one_code(
    error: Exception, status: int, code: str, detail: str, headers: dict[str, str]
) -> None:
    response = await answer_to(error)
    assert check_problem(response, status, code).detail == detail
    assert headers.items() <= dict(response.headers).items()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "content_type", "status", "code", "detail"),
    [
        (b'{"items": [', "application/json", 400, "invalid_json", "the body is not JSON: "),
        (b"{}", "text/plain", 415, "unsupported_media_type", "got content type text/plain, "),
        (b"{}", "application/json", 422, "invalid_request", "#/items: Field required"),
        (b'{"items": [{}]}', "application/json", 422, "invalid_request", "#/items/0/name: Field"),
    ],
)
async def test_body_that_is_not_what_the_route_takes(
    body: bytes, content_type: str, status: int, code: str, detail: str
) -> None:
    app = FastAPI()
    install_handlers(app)

    @app.post("/items")
    async def items(request: _Request) -> None:
        pytest.fail(f"{request} was taken")

    async with client_of(app) as client:
        response = await client.post("/items", content=body, headers={"content-type": content_type})
    assert check_problem(response, status, code).detail.startswith(detail)


@pytest.mark.anyio
async def test_pointer_escapes_what_a_pointer_means_and_names_parameters() -> None:
    app = FastAPI()
    install_handlers(app)

    @app.post("/values")
    async def values(number: int, body: Annotated[dict[str, int], Body()]) -> None:
        pytest.fail(f"{number} and {body} were taken")

    async with client_of(app) as client:
        response = await client.post("/values?number=x", json={"a/b~c": "d", "e": "f"})
    problem = check_problem(response, 422, "invalid_request")
    assert problem.errors is not None
    assert [error.pointer for error in problem.errors] == ["query number", "#/a~1b~0c", "#/e"]
    assert problem.detail.startswith("query number: ")


@pytest.mark.anyio
async def test_a_thousand_mistakes_are_twenty_errors() -> None:
    app = FastAPI()
    install_handlers(app)

    @app.post("/items")
    async def items(request: _Request) -> None:
        pytest.fail(f"{request} was taken")

    async with client_of(app) as client:
        response = await client.post("/items", json={"items": [{}] * 1000})
    problem = check_problem(response, 422, "invalid_request")
    assert problem.errors is not None
    pointers = [error.pointer for error in problem.errors]
    assert pointers == [f"#/items/{k}/name" for k in range(20)]
