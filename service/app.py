"""The application: joins settings, models, routes and middleware. Importing it builds nothing."""

import asyncio
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from fastapi import Depends, FastAPI, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from prometheus_client.multiprocess import mark_process_dead
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute

from service.bulk.flow import StreamPermits
from service.bulk.job_runner import JobRunner
from service.bulk.jobs import JobStore
from service.core.artifact_engine import load_engine
from service.core.engine import Engine
from service.core.memory import frozen_gc, limit_malloc_arenas
from service.core.models import ModelRegistry
from service.core.parsing import LOSSES
from service.core.pipeline import Pipeline
from service.core.reading import ITEM_CODES
from service.formats.inference_protocol import InferRequest
from service.http.compression import CompressDescriptions
from service.http.middleware import (
    Authenticate,
    BodyLimit,
    HeadAsGet,
    InflateBody,
    LimitBody,
    ObserveRequests,
)
from service.http.problems import MEDIA_TYPE, install_handlers
from service.http.routes import (
    depictions,
    documentation,
    files,
    inference_protocol,
    matching,
    models,
    operation,
    page,
    predictions,
)
from service.http.routes.common import refuse_unknown_parameters
from service.rates import Rates
from service.schemas import StreamLine
from service.security import KeyRing
from service.services import Services
from service.settings import Settings, load_settings
from service.telemetry.logs import configure_logging
from service.telemetry.metrics import MULTIPROCESS_FOLDER, Metrics
from service.telemetry.tracing import start_tracing, stop_tracing

log = logging.getLogger(__name__)

DESCRIPTION = (
    "One merged graph neural network with a small adapter bank answers every task of every molecule"
    " or graph."
)

_REFRESH_SECONDS = 1.0
_UPLOAD_SECONDS = 3600.0
# For the OpenAPI document only: the middleware `Authenticate` checks the keys.
_KEYS = [
    Security(HTTPBearer(auto_error=False)),
    Security(APIKeyHeader(name="X-API-Key", auto_error=False)),
]


class Application(FastAPI):
    """FastAPI application whose OpenAPI document lists problems as `application/problem+json`."""

    def openapi(self) -> dict[str, Any]:
        """Build the OpenAPI document once, and return it."""
        if self.openapi_schema is None:
            document = super().openapi()
            # FastAPI does not know the bodies that a route reads by itself.
            document["components"]["schemas"] |= _schemas_of(InferRequest, StreamLine)
            operations = [
                operation for path in document["paths"].values() for operation in path.values()
            ]
            responses = [r for operation in operations for r in operation["responses"].values()]
            for content in (response.get("content", {}) for response in responses):
                schema = content.get("application/json", {}).get("schema", {})
                if schema.get("$ref", "").endswith("/Problem"):
                    content[MEDIA_TYPE] = content.pop("application/json")
            self.openapi_schema = document
        return self.openapi_schema


def _schemas_of(*models: type[BaseModel]) -> dict[str, Any]:
    template = "#/components/schemas/{model}"
    document = models_json_schema([(m, "validation") for m in models], ref_template=template)[1]
    schemas: dict[str, Any] = document["$defs"]
    return schemas


def worker_app(settings: Settings) -> FastAPI:
    """Create the application of one worker process, which exits when its supervisor does."""
    configure_logging(settings)
    threading.Thread(target=_exit_with_parent, name="exit with parent", daemon=True).start()
    return create_app(settings)


def _exit_with_parent() -> None:
    """Send SIGTERM to this process once its supervisor is gone.

    A worker whose supervisor was killed would hold the port, with nobody left to stop it.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent.join()
    log.error("the supervisor %s is gone", parent.pid)
    os.kill(os.getpid(), signal.SIGTERM)


def create_app(settings: Settings | None = None, engine: Engine | None = None) -> FastAPI:
    """Create the application.

    Args:
        settings: settings of the service; read from the environment if None.
        engine: engine of the default model. If None, the lifespan takes `app.state.engine`, or
            loads the artifact of the settings.

    Returns:
        An application whose lifespan loads the models, and fails if one of them cannot be used.

    Raises:
        ConfigError: a setting or the list of API keys is invalid.
    """
    settings = load_settings() if settings is None else settings
    metrics = Metrics(ITEM_CODES, LOSSES)
    shared = os.environ.get(MULTIPROCESS_FOLDER)
    shared_folder = None if shared is None else Path(shared)
    rates = Rates(shared_folder / "rates.json" if shared_folder else None)
    keys = KeyRing(settings.api_keys, settings.api_keys_file, rates)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with _running(settings, metrics, keys, shared_folder, app.state.engine) as services:
            app.state.services = services
            with _draining(services.pipeline, settings.drain_seconds):
                yield

    app = Application(
        title="G-Merging",
        version=version("g-merging"),
        description=DESCRIPTION,
        lifespan=lifespan,
        openapi_url=None,  # served by `documentation.router`
        redirect_slashes=False,
    )
    app.state.metrics, app.state.services, app.state.engine = metrics, None, engine
    open_routers = [operation.router, inference_protocol.health_router]
    if settings.metrics_port is None:
        open_routers.append(operation.metrics_router)
    keyed_routers = [
        predictions.router,
        depictions.router,
        matching.router,
        files.router,
        models.router,
        models.admin_router,
        inference_protocol.router,
    ]
    for router in open_routers:
        app.include_router(router)
    for router in (page.router, documentation.router):
        app.include_router(router, dependencies=[Depends(refuse_unknown_parameters)])
    for router in keyed_routers:
        app.include_router(router, dependencies=[Depends(refuse_unknown_parameters), *_KEYS])
    install_handlers(app)
    routers = [*open_routers, page.router, documentation.router, *keyed_routers]
    routes = [route for router in routers for route in router.routes]
    _add_middleware(app, settings, metrics, keys, routes)
    return app


def _add_middleware(
    app: FastAPI, settings: Settings, metrics: Metrics, keys: KeyRing, routes: Sequence[BaseRoute]
) -> None:
    """Add the middleware from the innermost to the outermost."""
    app.add_middleware(CompressDescriptions)
    app.add_middleware(HeadAsGet)
    app.add_middleware(LimitBody, limits=partial(_body_limit, settings))
    app.add_middleware(InflateBody)
    app.add_middleware(Authenticate, keys=keys)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["*"],  # X-Model-*, Location, X-Request-Id
        )
    app.add_middleware(ObserveRequests, metrics=metrics, routes=routes)


@asynccontextmanager
async def _running(
    settings: Settings,
    metrics: Metrics,
    keys: KeyRing,
    shared_folder: Path | None,
    engine: Engine | None,
) -> AsyncIterator[Services]:
    """Start the services of an application; on exit, answer all requests and stop them.

    Args:
        settings, metrics, keys: of the application.
        shared_folder: folder that all workers of the service share; None for a single process.
        engine: engine of the default model; loaded from the artifact if None.
    """
    limit_malloc_arenas()
    if settings.tracing:
        start_tracing()
    registry = ModelRegistry(
        partial(load_engine, settings=settings),
        metrics,
        settings.artifact,
        settings.models,
        settings.watch_seconds,
        shared_folder / "orders.json" if shared_folder else None,
        settings.model_name,
    )
    pipeline = Pipeline(settings, metrics)
    jobs = None
    if settings.jobs is not None:
        jobs = await asyncio.to_thread(JobStore, settings.jobs, 3600 * settings.job_hours)
    runner = None if jobs is None else JobRunner(jobs, pipeline, registry, keys, metrics)
    metrics.read_gauges_with(lambda: pipeline.gauges(0 if jobs is None else jobs.waiting()))
    refreshing = None
    if shared_folder is not None:
        refreshing = asyncio.create_task(_refresh(metrics, shared_folder), name="refresh metrics")
    try:
        await registry.start(engine)
        await pipeline.start()
        if runner is not None:
            runner.start()
        with frozen_gc():
            streams = StreamPermits(settings.max_streams)
            yield Services(settings, metrics, keys, pipeline, registry, streams, jobs)
    finally:
        if runner is not None:
            await runner.close()
        await registry.close()
        await pipeline.close()
        if refreshing is not None:
            refreshing.cancel()
        stop_tracing()


async def _refresh(metrics: Metrics, folder: Path) -> None:
    """Refresh this worker's gauges every second, and delete those of workers that are gone."""
    while True:
        for pid in {int(path.stem.rpartition("_")[2]) for path in folder.glob("gauge_*.db")}:
            if not Path(f"/proc/{pid}").exists():
                mark_process_dead(pid, str(folder))
        metrics.refresh()
        await asyncio.sleep(_REFRESH_SECONDS)


@contextmanager
def _draining(pipeline: Pipeline, seconds: float) -> Iterator[None]:
    """Delay SIGTERM and SIGINT by `seconds`, in which `/readyz` already answers 503.

    Load balancers stop sending requests in that time. A second signal stops the server at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def stop_later(number: int, frame: FrameType | None) -> None:
        stop = handlers[signal.Signals(number)]
        is_second = not pipeline.ready
        pipeline.drain()
        name, delay = signal.Signals(number).name, 0 if is_second else seconds
        log.info("told to stop by %s: not ready from now on, closing in %g s", name, delay)
        if not callable(stop):
            return
        if not delay:
            stop(number, frame)
        else:
            timer = threading.Timer(delay, stop, (number, None))
            timer.daemon = True
            timer.start()

    # Only where a server has installed handlers of its own, and not in a test.
    if all(
        callable(handler) and handler is not signal.default_int_handler
        for handler in handlers.values()
    ):
        for number in handlers:
            signal.signal(number, stop_later)
    yield


def _body_limit(settings: Settings, path: str) -> BodyLimit | None:
    if path == "/predict/stream":
        return None  # a stream may be endless; the route limits its lines
    if path == "/predict/file":
        return BodyLimit("max_file_bytes", settings.max_file_bytes, _UPLOAD_SECONDS)
    return BodyLimit("max_body_bytes", settings.max_body_bytes, settings.request_timeout_seconds)
