"""Probes and metrics.

They accept any query parameter: probing systems add some of their own to get past caches.
"""

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from service.http.problems import not_ready
from service.http.routes.common import ServicesDep, problems
from service.schemas import HealthResponse
from service.telemetry.metrics import Metrics

router = APIRouter(tags=["operation"])
metrics_router = APIRouter(tags=["operation"])


@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> HealthResponse:
    """Restart the process if this does not answer."""
    return HealthResponse(status="alive")


@router.get("/readyz", summary="Should predictions be asked for here?", responses=problems(503))
async def readyz(services: ServicesDep) -> HealthResponse:
    """Send requests only while this answers 200.

    The models have answered a warm-up, and the service was not told to stop.
    """
    if not services.pipeline.ready:
        raise not_ready()
    return HealthResponse(status="ready")


@metrics_router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Return the metrics in Prometheus' text format."""
    metrics: Metrics = request.app.state.metrics
    return Response(metrics.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})
