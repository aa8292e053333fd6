import asyncio
import json
import logging

import pytest

from service.app import create_app
from service.telemetry import tracing
from service.telemetry.logs import JsonFormatter, TextFormatter, configure_logging, request_id
from tests.service.doubles import DummyEngine, client_of, serving, settings_of

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
        assert (await client.get("/readyz")).status_code == 200


async def test_deadline(engine: DummyEngine) -> None:
    async with serving(engine, request_timeout_seconds=20) as client:
        engine.gate.clear()
        response = await client.post(
            "/predict", json={"smiles": "C"}, headers={"x-request-timeout": "0.1"}
        )
        assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")
        engine.gate.set()
        assert (
            await client.post("/predict", json={"smiles": "C"}, headers={"x-request-timeout": "10"})
        ).status_code == 200


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
    (line,) = [json.loads(each) for each in caplog.text.splitlines() if '"service.access"' in each]
    assert (line["message"], line["request_id"], line["method"], line["route"], line["status"]) == (
        "request",
        "abc",
        "POST",
        "/predict",
        422,
    )
    assert line["level"] == "info"
    assert line["seconds"] > 0
    assert line["time"].endswith("+00:00")


async def test_failure_is_logged_with_its_id(caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.setFormatter(JsonFormatter())
    async with serving() as client:
        await client.post("/predict", json={"smiles": "[U]"}, headers={"x-request-id": "broken-1"})
    (line,) = [json.loads(each) for each in caplog.text.splitlines() if '"level":"error"' in each]
    assert line["request_id"] == "broken-1"
    assert "the model broke" in line["exception"]


def test_formats() -> None:
    record = logging.makeLogRecord(
        {
            "name": "x",
            "levelname": "INFO",
            "levelno": 20,
            "msg": "got %s\n\ud800",
            "args": ("a",),
            "extra": {"b": 1},
        }
    )
    token = request_id.set(None)
    line = json.loads(JsonFormatter().format(record))
    request_id.reset(token)
    assert "\n" not in JsonFormatter().format(record)
    assert (line["message"][:5], line["extra"]) == ("got a", {"b": 1})
    assert TextFormatter("%(levelname)s: %(message)s").format(record).startswith("INFO: got a")


def test_log_that_cannot_be_written_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    handlers, level, raises = root.handlers[:], root.level, logging.raiseExceptions
    try:
        with open("/dev/full", "w") as full:
            monkeypatch.setattr("sys.stderr", full)
            configure_logging(settings_of())
            logging.getLogger("x").error("lost")
            root.handlers[0].stream = None  # type: ignore[attr-defined]  # or closing it would write what is left
    except OSError:
        pass
    finally:
        root.handlers[:], logging.raiseExceptions = handlers, raises
        root.setLevel(level)


async def test_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    memory = pytest.importorskip(
        "opentelemetry.sdk.trace.export.in_memory_span_exporter"
    ).InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(
        pytest.importorskip("opentelemetry.sdk.trace.export").SimpleSpanProcessor(memory)
    )
    app = create_app(settings_of(), DummyEngine())
    caller = "0af7651916cd43dd8448eb211c80319c"
    async with app.router.lifespan_context(app), client_of(app) as client:
        monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("test"))
        await client.post(
            "/predict",
            json={"smiles": "C"},
            headers={"traceparent": f"00-{caller}-b7ad6b7169203331-01"},
        )
        monkeypatch.setattr(tracing, "_tracer", None)
    spans = {span.name: span for span in memory.get_finished_spans()}
    assert set(spans) == {"request", "parse", "model"}
    assert {format(span.context.trace_id, "032x") for span in spans.values()} == {caller}
    assert (
        spans["parse"].parent.span_id
        == spans["model"].parent.span_id
        == spans["request"].context.span_id
    )
    assert spans["request"].attributes["status"] == 200
