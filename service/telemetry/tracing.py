"""OpenTelemetry traces: a span for every request, and one for each of its stages.

The packages are the extra `tracing`. The standard `OTEL_*` variables choose exporter and sampling;
the `traceparent` header of a request makes its spans children of the caller's trace.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from models.errors import ConfigError

_tracer: Any = None


def start_tracing() -> None:
    """Start tracing in this process.

    Raises:
        ConfigError: the OpenTelemetry packages are not installed.
    """
    global _tracer
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            f"GMERGING_TRACING: got true and no OpenTelemetry ({error}), expected the extra: pip"
            " install 'g-merging[tracing]'"
        ) from None
    provider = TracerProvider(resource=Resource.create({"service.name": "g-merging"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    _tracer = trace.get_tracer("g-merging")


def stop_tracing() -> None:
    """Stop tracing, and export the spans that are left."""
    global _tracer
    if _tracer is not None:
        from opentelemetry import trace

        _tracer = None
        trace.get_tracer_provider().shutdown()  # type: ignore[attr-defined]


@contextmanager
def span(name: str, carrier: Mapping[str, str] | None = None, **attributes: Any) -> Iterator[Any]:
    """Trace a block of code as a span; do nothing if tracing is off.

    Args:
        name: name of the span.
        carrier: headers that name the parent span; None takes the current span.
        attributes: attributes of the span.

    Yields:
        The span; None if tracing is off.
    """
    if _tracer is None:
        yield None
        return
    from opentelemetry.propagate import extract

    context = extract(carrier) if carrier is not None else None
    with _tracer.start_as_current_span(name, context=context, attributes=attributes) as current:
        yield current
