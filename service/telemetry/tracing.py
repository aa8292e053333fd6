"""OpenTelemetry traces, where they are asked for: a span for each request and one for each of its
stages.

The packages are an extra. Where they export to, and how much, is set by the `OTEL_*` variables that
every OpenTelemetry program knows; a request's `traceparent` header makes its spans part of its
caller's trace.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from models.errors import ConfigError

_tracer: Any = None


def start_tracing() -> None:
    """Make spans from now on, in this process. Raises ConfigError if the packages are not
    installed."""
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
    """Export what is left."""
    global _tracer
    if _tracer is not None:
        from opentelemetry import trace

        _tracer = None
        trace.get_tracer_provider().shutdown()  # type: ignore[attr-defined]


@contextmanager
def span(name: str, carrier: Mapping[str, str] | None = None, **attributes: Any) -> Iterator[Any]:
    """A span around a block of code, within the current one or, with `carrier`, within the one that
    these headers name; nothing without tracing.

    Gives the span, or None.
    """
    if _tracer is None:
        yield None
        return
    from opentelemetry.propagate import extract

    context = extract(carrier) if carrier is not None else None
    with _tracer.start_as_current_span(name, context=context, attributes=attributes) as current:
        yield current
