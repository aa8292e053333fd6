"""Traces: off by default, an error without the packages, spans that belong together."""

import sys
from typing import Any

import pytest

from models.errors import ConfigError
from service.app import create_app
from service.telemetry import tracing
from service.telemetry.tracing import span, start_tracing, stop_tracing
from tests.service.doubles import DummyEngine, client_of, settings_of

CALLER = "0af7651916cd43dd8448eb211c80319c"


def test_without_tracing_a_span_is_none_and_the_block_runs() -> None:
    with span("request", {"traceparent": f"00-{CALLER}-b7ad6b7169203331-01"}, a=1) as current:
        assert current is None
    with pytest.raises(ValueError, match="inside"), span("model"):
        raise ValueError("inside")


def test_packages_that_are_missing_are_named_with_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    message = r"GMERGING_TRACING: got true and no OpenTelemetry .*'g-merging\[tracing\]'"
    with pytest.raises(ConfigError, match=message):
        start_tracing()
    assert tracing._tracer is None


@pytest.mark.anyio
async def test_start_of_the_service_says_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    app = create_app(settings_of(tracing=True), DummyEngine())
    with pytest.raises(ConfigError, match="GMERGING_TRACING"):
        async with app.router.lifespan_context(app):
            pytest.fail("it started")


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Where the spans of a provider of the test's own are kept."""
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    kept = memory.InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(kept))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("test"))
    return kept


def test_span_has_its_attributes_its_parent_and_the_error_of_its_block(spans: Any) -> None:
    with (
        pytest.raises(ValueError, match="inside"),
        span("outer", {"traceparent": f"00-{CALLER}-b7ad6b7169203331-01"}, molecules=3) as outer,
        span("inner"),
    ):
        raise ValueError("inside")
    inner, found = spans.get_finished_spans()
    assert (inner.name, found.name) == ("inner", "outer")
    assert inner.parent.span_id == found.context.span_id == outer.context.span_id
    assert format(found.context.trace_id, "032x") == CALLER
    assert format(found.parent.span_id, "016x") == "b7ad6b7169203331"
    assert dict(found.attributes) == {"molecules": 3}
    assert [event.name for event in inner.events] == ["exception"]
    assert not inner.status.is_ok


def test_stop_exports_what_is_left_once(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = pytest.importorskip("opentelemetry.trace")
    stopped: list[int] = []

    class Provider:
        def shutdown(self) -> None:
            stopped.append(1)

    monkeypatch.setattr(trace, "get_tracer_provider", Provider)
    stop_tracing()
    assert stopped == []  # it was never started
    monkeypatch.setattr(tracing, "_tracer", object())
    stop_tracing()
    stop_tracing()
    assert stopped == [1]


@pytest.mark.anyio
async def test_request_has_a_span_for_each_stage_within_the_callers_trace(spans: Any) -> None:
    tracer, tracing._tracer = tracing._tracer, None  # the lifespan's end would shut it down
    app = create_app(settings_of(), DummyEngine())
    async with app.router.lifespan_context(app), client_of(app) as client:
        tracing._tracer = tracer
        headers = {"traceparent": f"00-{CALLER}-b7ad6b7169203331-01", "x-request-id": "r1"}
        await client.post("/predict", json={"smiles": ["C", "CC"]}, headers=headers)
        tracing._tracer = None
    found = {finished.name: finished for finished in spans.get_finished_spans()}
    assert set(found) == {"request", "parse", "model"}
    assert {format(s.context.trace_id, "032x") for s in found.values()} == {CALLER}
    request = found["request"].context.span_id
    assert [found[name].parent.span_id for name in ("parse", "model")] == [request, request]
    assert dict(found["request"].attributes) == {
        "method": "POST",
        "path": "/predict",
        "request_id": "r1",
        "status": 200,
    }
    assert [dict(found[name].attributes) for name in ("parse", "model")] == [{"molecules": 2}] * 2
