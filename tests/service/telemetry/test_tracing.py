import pytest

from service.app import create_app
from service.telemetry import tracing
from tests.service.doubles import DummyEngine, client_of, settings_of


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
