import asyncio
import gzip
import json
import logging
import re
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from types import SimpleNamespace

import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.middleware import Authenticate, HeadAsGet, InflateBody, LimitBody, ObserveRequests
from service.security import KeyRing
from service.telemetry.logs import JsonFormatter
from service.telemetry.metrics import Metrics
from tests.service.doubles import DummyEngine, check_problem, metric, serving
from tests.service.test_security import ADMIN, KEYS, LAB

pytestmark = pytest.mark.anyio


async def test_body_that_comes_too_slowly() -> None:
    async def slow() -> object:
        yield b'{"smiles"'
        await asyncio.sleep(30)
        yield b': "C"}'

    async with serving(request_timeout_seconds=0.1) as client:
        response = await client.post(
            "/predict", content=slow(), headers={"content-type": "application/json"}
        )  # type: ignore[arg-type]
        assert (response.status_code, response.json()["code"], response.headers["connection"]) == (
            408,
            "body_too_slow",
            "close",
        )
        assert (await client.get("/readyz")).json() == {"status": "ready"}


async def test_deadline(engine: DummyEngine) -> None:
    async with serving(engine, request_timeout_seconds=20) as client:
        engine.gate.clear()
        response = await client.post(
            "/predict", json={"smiles": "C"}, headers={"x-request-timeout": "0.1"}
        )
        assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")
        engine.gate.set()
        body = {"smiles": "C", "tasks": ["bbbp"]}
        answer = await client.post("/predict", json=body, headers={"x-request-timeout": "10"})
        assert answer.json()["predictions"][0]["tasks"] == {"bbbp": {"p_np": 0.5}}


@pytest.mark.parametrize("timeout", ["0", "-1", "soon", "nan", "inf", "1e9"])
async def test_deadline_that_is_none(timeout: str) -> None:
    async with serving() as client:
        response = await client.post(
            "/predict", json={"smiles": "C"}, headers={"x-request-timeout": timeout}
        )
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert response.json()["errors"][0]["pointer"].lower() == "header x-request-timeout"


async def test_access_log_has_the_id_and_leaves_probes_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.handler.setFormatter(JsonFormatter())
    with caplog.at_level(logging.INFO, "service.access"):
        async with serving() as client:
            await client.post("/predict", json={"smiles": "C1"}, headers={"x-request-id": "abc"})
            await client.get("/healthz")
            await client.get("/metrics")
    (line,) = [json.loads(text) for text in caplog.text.splitlines() if '"service.access"' in text]
    assert (line["message"], line["request_id"], line["method"], line["route"], line["status"]) == (
        "request",
        "abc",
        "POST",
        "/predict",
        422,
    )
    assert line["level"] == "info"
    assert 0 < line["seconds"] < 60
    assert line["client"] is None
    assert datetime.fromisoformat(line["time"]).utcoffset() == timedelta(0)


async def test_failure_is_logged_with_its_id(caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.setFormatter(JsonFormatter())
    async with serving() as client:
        await client.post("/predict", json={"smiles": "[U]"}, headers={"x-request-id": "broken-1"})
    (line,) = [json.loads(text) for text in caplog.text.splitlines() if '"level":"error"' in text]
    assert line["request_id"] == "broken-1"
    assert "the model broke" in line["exception"]


async def test_head_is_answered_wherever_get_is() -> None:
    async with serving() as client:
        for path in (
            "/",
            "/healthz",
            "/readyz",
            "/metrics",
            "/tasks",
            "/docs",
            "/docs/start.js",
            "/v2",
        ):
            got, head = await client.get(path), await client.head(path)
            assert (head.status_code, head.content) == (got.status_code, b""), path
            assert head.headers["content-type"] == got.headers["content-type"], path
        assert (await client.head("/docs")).headers["content-length"] == str(
            len((await client.get("/docs")).content)
        )
        assert (await client.head("/predict")).status_code == 405
        text = (await client.get("/metrics")).text
    assert metric(text, 'gmerging_requests_total{method="HEAD",route="/readyz",status="200"}') == 1


async def test_request_id_is_the_clients_or_a_new_one() -> None:
    async with serving() as client:
        kept = await client.get("/healthz", headers={"x-request-id": "job-7.a_b"})
        replaced = await client.get("/nope", headers={"x-request-id": "bad id\t{}"})
        made = await client.get("/healthz")
    assert kept.headers["x-request-id"] == "job-7.a_b"
    assert len(replaced.headers["x-request-id"]) == len(made.headers["x-request-id"]) == 32
    assert replaced.headers["x-request-id"] != made.headers["x-request-id"]


async def in_chunks(body: bytes) -> AsyncIterator[bytes]:
    for begin in range(0, len(body), 100):
        yield body[begin : begin + 100]


async def test_limit_on_the_body_declared_or_chunked() -> None:
    fits = json.dumps({"smiles": "C", "tasks": ["bbbp"]}).encode().ljust(1024)
    async with serving(max_body_bytes=1024) as client:
        json_type = {"content-type": "application/json"}
        for content in (fits, in_chunks(fits)):
            answer = await client.post("/predict", content=content, headers=json_type)
            assert answer.json()["predictions"][0]["tasks"] == {"bbbp": {"p_np": 0.5}}
        for content in (fits + b" ", in_chunks(fits + b" ")):
            problem = check_problem(
                await client.post("/predict", content=content, headers=json_type),
                413,
                "body_too_large",
            )
            assert problem.limit == {"max_body_bytes": 1024}


async def test_who_may_do_what() -> None:
    expected = {
        "/healthz": (200, 200, 200, 200),
        "/readyz": (200, 200, 200, 200),
        "/metrics": (200, 200, 200, 200),
        "/openapi.json": (200, 200, 200, 200),
        "/docs": (200, 200, 200, 200),
        "/docs/start.js": (200, 200, 200, 200),
        "/": (200, 200, 200, 200),
        "/guide/nothing.html": (404, 404, 404, 404),
        "/v2/health/ready": (200, 200, 200, 200),
        "/tasks": (401, 401, 200, 200),
        "/v2": (401, 401, 200, 200),
        "/jobs": (401, 401, 200, 200),
        "/nothing": (401, 401, 404, 404),
        "/admin/models": (401, 401, 403, 200),
    }
    async with serving(api_keys=KEYS) as client:
        for path, statuses in expected.items():
            headers: tuple[dict[str, str], ...] = (
                {},
                bearer("wrong"),
                bearer(LAB),
                {"x-api-key": ADMIN},
            )
            answers = [await client.get(path, headers=fields) for fields in headers]
            assert tuple(answer.status_code for answer in answers) == statuses, path
        refused = await client.post("/predict", json={"smiles": "C"})
        assert (
            refused.status_code,
            refused.json()["code"],
            refused.headers["www-authenticate"],
        ) == (401, "unauthorized", "Bearer")
        missing = "expected a key: `Authorization: Bearer <key>` or `X-API-Key: <key>`"
        assert (await client.get("/v2")).json()["error"] == missing
        wrong = await client.get("/v2", headers=bearer("wrong"))
        assert wrong.json()["error"] == "the key is not known"
        body = {"smiles": "C", "tasks": ["bbbp"]}
        answer = await client.post("/predict", json=body, headers=bearer(LAB))
        assert answer.json()["predictions"][0]["tasks"] == {"bbbp": {"p_np": 0.5}}


async def test_refusals_are_counted_under_their_route() -> None:
    def counted(text: str) -> dict[tuple[str, str], float]:
        found = re.findall(
            r'gmerging_requests_total{method="\w+",route="([^"]*)",status="(4\d\d)"} (\S+)', text
        )
        return {(route, status): float(value) for route, status, value in found}

    async with serving(api_keys=KEYS, max_body_bytes=1024) as client:
        await client.post("/predict", json={"smiles": "C"})
        await client.get("/jobs/a1", headers=bearer("wrong"))
        await client.post("/v2/models/dummy/versions/1/infer", json={})
        await client.get("/admin/models", headers=bearer(LAB))
        await client.get("/admin/nothing", headers=bearer(LAB))
        await client.get("/nothing/at/all")
        await client.post(
            "/predict",
            content=b" " * 2000,
            headers={**bearer(LAB), "content-type": "application/json"},
        )
        await client.post(
            "/predict", content=b"x", headers={**bearer(LAB), "content-encoding": "br"}
        )
        for _ in range(2):
            await client.post("/predict", json={"smiles": ["C"] * 10}, headers=bearer(LAB))
        await client.get("/predict", headers=bearer(LAB))
        text = (await client.get("/metrics")).text
    assert counted(text) == {
        ("/predict", "401"): 1,
        ("/jobs/{job_id}", "401"): 1,
        ("/v2/models/{name}/versions/{version}/infer", "401"): 1,
        ("/admin/models", "403"): 1,
        ("unmatched", "403"): 1,
        ("unmatched", "401"): 1,
        ("/predict", "413"): 1,
        ("/predict", "415"): 1,
        ("/predict", "429"): 1,
        ("/predict", "405"): 1,
    }


async def test_without_keys_predictions_are_open_and_admin_is_closed() -> None:
    async with serving() as client:
        answer = await client.post("/predict", json={"smiles": "C", "tasks": ["bbbp"]})
        assert answer.json()["predictions"][0]["tasks"] == {"bbbp": {"p_np": 0.5}}
        response = await client.post(
            "/admin/models/dummy", json={"action": "reload"}, headers=bearer("x")
        )
    assert (response.status_code, response.json()["code"]) == (403, "admin_disabled")


async def test_rate_limit_is_a_429(monkeypatch: pytest.MonkeyPatch) -> None:
    # The clock of the rates begins a minute; that of the event loop goes on.
    monkeypatch.setattr("service.rates.time", SimpleNamespace(monotonic=lambda: 6000.0))
    async with serving(api_keys=KEYS) as client:

        async def ask(count: int) -> httpx.Response:
            return await client.post(
                "/predict", json={"smiles": ["C"] * count}, headers=bearer(LAB)
            )

        assert [(await ask(count)).status_code for count in (7, 3, 1)] == [200, 200, 429]
        refused = await ask(1)
    assert refused.json()["code"] == "rate_limited"
    assert refused.headers["retry-after"] == "66"  # a tenth of the next minute


async def test_headers_and_no_cors_unless_asked_for() -> None:
    origin = {"origin": "https://lab.example", "access-control-request-method": "POST"}
    async with serving() as client:
        response = await client.get("/healthz", headers=origin)
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
        assert response.headers["content-security-policy"].startswith("default-src 'none'")
        assert (
            "script-src 'self';" in (await client.get("/docs")).headers["content-security-policy"]
        )
        assert not [name for name in response.headers if name.startswith("access-control")]
    async with serving(
        cors_origins="https://lab.example, https://other.example", api_keys=KEYS
    ) as client:
        # browsers send it without a key
        preflight = await client.options("/predict", headers=origin)
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (
            200,
            "https://lab.example",
        )
        deletion = await client.options(
            "/jobs/1", headers={**origin, "access-control-request-method": "DELETE"}
        )
        assert deletion.headers["access-control-allow-methods"] == "GET, POST, DELETE"
        answer = await client.get("/healthz", headers=origin)
        assert answer.headers["access-control-expose-headers"] == "*"  # X-Model-*, Location
        stranger = await client.options(
            "/predict", headers={**origin, "origin": "https://evil.example"}
        )
        assert "access-control-allow-origin" not in stranger.headers


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


# --- the layers, one by one ---


async def _no_receive() -> Message:
    pytest.fail("a scope that is no request has no body")


async def test_scopes_that_are_no_requests_pass_through_every_layer() -> None:
    scope = {"type": "lifespan", "state": {}}
    passed: list[object] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        passed.append((scope, receive, send))

    async def send(message: Message) -> None:
        pytest.fail(f"{message} was sent")

    layers: list[ASGIApp] = [
        ObserveRequests(inner, Metrics([]), []),
        Authenticate(inner, KeyRing(KEYS)),
        HeadAsGet(inner),
        InflateBody(inner),
        LimitBody(inner, lambda path: pytest.fail(f"{path} was looked up")),
    ]
    for layer in layers:
        await layer(scope, _no_receive, send)
    assert passed == [(scope, _no_receive, send)] * len(layers)


async def received(
    app: type[InflateBody], messages: list[Message], headers: list[tuple[bytes, bytes]]
) -> list[Message]:
    """What an application behind the layer receives, until the body ends or the client goes."""
    found: list[Message] = []
    waiting = iter(messages)

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        found.append({"headers": dict(scope["headers"])})
        while not found[-1].get("ended"):
            message = await receive()
            is_last = message["type"] == "http.disconnect" or not message["more_body"]
            found.append({**message, "ended": is_last})

    async def receive() -> Message:
        return next(waiting)

    async def send(message: Message) -> None:
        pytest.fail(f"{message} was sent")

    await app(inner)({"type": "http", "path": "/", "headers": headers}, receive, send)
    return found


async def test_client_that_goes_in_the_middle_of_a_packed_body_is_noticed() -> None:
    packed = gzip.compress(b"CCO")
    messages: list[Message] = [
        {"type": "http.request", "body": packed[:5], "more_body": True},
        {"type": "http.disconnect"},
    ]
    headers = [(b"content-encoding", b"gzip"), (b"content-length", b"23"), (b"x-a", b"1")]
    first, *rest = await received(InflateBody, messages, headers)
    assert first["headers"] == {b"x-a": b"1"}  # those of the packed body are gone
    assert [message["type"] for message in rest] == ["http.disconnect"]


async def test_packed_body_ends_with_an_empty_chunk() -> None:
    packed = gzip.compress(b"CCO")
    messages: list[Message] = [
        {"type": "http.request", "body": packed[:12], "more_body": True},
        {"type": "http.request", "body": packed[12:], "more_body": False},
    ]
    _, *rest = await received(InflateBody, messages, [(b"content-encoding", b"gzip")])
    assert b"".join(message["body"] for message in rest) == b"CCO"
    assert [message["more_body"] for message in rest] == [True] * (len(rest) - 1) + [False]
    assert rest[-1]["body"] == b""


async def test_body_that_is_not_packed_is_not_touched() -> None:
    messages: list[Message] = [{"type": "http.request", "body": b"CCO", "more_body": False}]
    first, only = await received(InflateBody, messages, [(b"content-length", b"3")])
    assert first["headers"] == {b"content-length": b"3"}
    assert (only["body"], only["more_body"]) == (b"CCO", False)
