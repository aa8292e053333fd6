"""The application: joins settings, engines, routes and middleware. Nothing is built when this
module is imported."""

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

from service.bulk.flow import StreamPlaces
from service.bulk.job_runner import JobRunner
from service.bulk.jobs import JobStore
from service.core.engine import Engine, load_engine
from service.core.memory import frozen_gc, limit_malloc_arenas
from service.core.models import ModelRegistry
from service.core.parsing import LOSSES
from service.core.pipeline import Pipeline
from service.core.reading import ITEM_CODES
from service.formats.inference_protocol import InferRequest
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
    documentation,
    files,
    inference_protocol,
    models,
    operation,
    predictions,
)
from service.http.routes.common import closed_query
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
# For the documentation alone: `Authenticate` checks keys, before a body is read.
_KEYS = [
    Security(HTTPBearer(auto_error=False)),
    Security(APIKeyHeader(name="X-API-Key", auto_error=False)),
]


class Application(FastAPI):
    """FastAPI whose OpenAPI document says that problems are `application/problem+json`, as they
    are."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        if self.openapi_schema is None:
            document = super().openapi()
            # Bodies that a route reads by itself are not among those that FastAPI knows of.
            document["components"]["schemas"] |= _schemas_of(InferRequest, StreamLine)
            responses = [
                r
                for path in document["paths"].values()
                for operation in path.values()
                for r in operation["responses"].values()
            ]
            for content in (response.get("content", {}) for response in responses):
                if (
                    content.get("application/json", {})
                    .get("schema", {})
                    .get("$ref", "")
                    .endswith("/Problem")
                ):
                    content[MEDIA_TYPE] = content.pop("application/json")
            self.openapi_schema = document
        return self.openapi_schema


def _schemas_of(*kinds: type[BaseModel]) -> dict[str, Any]:
    schemas: dict[str, Any] = models_json_schema(
        [(kind, "validation") for kind in kinds], ref_template="#/components/schemas/{model}"
    )[1]["$defs"]
    return schemas


def worker_app(settings: Settings) -> FastAPI:
    """The application of one of several worker processes; these end when their supervisor does."""
    configure_logging(settings)
    threading.Thread(target=_end_with_parent, name="end with parent", daemon=True).start()
    return create_app(settings)


def _end_with_parent() -> None:
    """Or workers whose supervisor was killed would hold the port, with nobody to stop them."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent.join()
    log.error("the supervisor %s is gone", parent.pid)
    os.kill(os.getpid(), signal.SIGTERM)


def create_app(settings: Settings | None = None, engine: Engine | None = None) -> FastAPI:
    """Build an application.

    Args:
        settings: from the environment if None.
        engine: answers requests that name no model; loaded from the settings' artifact at
            start-up if None, and if `app.state.engine` is not set until then. Start-up fails if a
            model cannot be used.
    """
    chosen = load_settings() if settings is None else settings
    metrics = Metrics(ITEM_CODES, LOSSES)
    shared = Path(os.environ[MULTIPROCESS_FOLDER]) if MULTIPROCESS_FOLDER in os.environ else None
    rates = Rates(shared / "rates.json" if shared else None)
    keys = KeyRing(chosen.api_keys, chosen.api_keys_file, rates)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with _running(chosen, metrics, keys, shared, app.state.engine) as services:
            app.state.services = services
            with _draining(services.pipeline, chosen.drain_seconds):
                yield

    app = Application(
        title="G-Merging",
        version=version("g-merging"),
        description=DESCRIPTION,
        lifespan=lifespan,
        openapi_url=None,  # ours is `documentation.router`
        redirect_slashes=False,
    )
    app.state.metrics, app.state.services, app.state.engine = metrics, None, engine
    open_routers = [operation.router, inference_protocol.health_router]
    if chosen.metrics_port is None:
        open_routers.append(operation.metrics_router)
    keyed_routers = [
        predictions.router,
        files.router,
        models.router,
        models.admin_router,
        inference_protocol.router,
    ]
    for router in open_routers:
        app.include_router(router)
    app.include_router(documentation.router, dependencies=[Depends(closed_query)])
    for router in keyed_routers:
        app.include_router(router, dependencies=[Depends(closed_query), *_KEYS])
    install_handlers(app)
    routers = [*open_routers, documentation.router, *keyed_routers]
    routes = [route for router in routers for route in router.routes]
    _add_middleware(app, chosen, metrics, keys, routes)
    return app


def _add_middleware(
    app: FastAPI, chosen: Settings, metrics: Metrics, keys: KeyRing, routes: Sequence[BaseRoute]
) -> None:
    """Each is added around what is there: the last one is the outermost."""
    app.add_middleware(HeadAsGet)
    app.add_middleware(LimitBody, limits=partial(_body_limit, chosen))
    app.add_middleware(InflateBody)
    app.add_middleware(Authenticate, keys=keys)
    if chosen.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=chosen.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["*"],  # those that name the model, the job and the request
        )
    app.add_middleware(ObserveRequests, metrics=metrics, routes=routes)


@asynccontextmanager
async def _running(
    settings: Settings,
    metrics: Metrics,
    keys: KeyRing,
    shared: Path | None,
    engine: Engine | None,
) -> AsyncIterator[Services]:
    """The parts of the application, started; stopped at the end, with all requests answered.

    `shared` is the folder of several workers.
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
        shared / "orders.json" if shared else None,
    )
    pipeline = Pipeline(settings, metrics)
    jobs = (
        None
        if settings.jobs is None
        else await asyncio.to_thread(JobStore, settings.jobs, 3600 * settings.job_hours)
    )
    runner = None if jobs is None else JobRunner(jobs, pipeline, registry, keys, metrics)
    metrics.watch(lambda: pipeline.gauges(0 if jobs is None else jobs.waiting()))
    refreshing = (
        asyncio.create_task(_refresh(metrics, shared), name="refresh metrics") if shared else None
    )
    try:
        await registry.start(engine)
        await pipeline.start()
        if runner is not None:
            runner.start()
        with frozen_gc():
            yield Services(
                settings,
                metrics,
                keys,
                pipeline,
                registry,
                StreamPlaces(settings.max_streams),
                jobs,
            )
    finally:
        if runner is not None:
            await runner.close()
        await registry.close()
        await pipeline.close()
        if refreshing is not None:
            refreshing.cancel()
        stop_tracing()


async def _refresh(metrics: Metrics, folder: Path) -> None:
    """Keep this process's gauges new, and forget those of processes that are gone."""
    while True:
        for pid in {int(path.stem.rpartition("_")[2]) for path in folder.glob("gauge_*.db")}:
            if not Path(f"/proc/{pid}").exists():
                mark_process_dead(pid, str(folder))
        metrics.refresh()
        await asyncio.sleep(_REFRESH_SECONDS)


@contextmanager
def _draining(pipeline: Pipeline, seconds: float) -> Iterator[None]:
    """While this holds, SIGTERM and SIGINT first take readiness away, and only `seconds` later stop
    the server: so load balancers can look away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def stop_later(number: int, frame: FrameType | None) -> None:
        stop = handlers[signal.Signals(number)]
        again = not pipeline.ready
        pipeline.drain()
        log.info(
            "told to stop by %s: not ready from now on, closing in %g s",
            signal.Signals(number).name,
            0 if again else seconds,
        )
        if not callable(stop):
            return
        if again or not seconds:
            stop(number, frame)
        else:
            timer = threading.Timer(seconds, stop, (number, None))
            timer.daemon = True
            timer.start()

    # a server's, and not a test's
    if all(
        callable(handler) and handler is not signal.default_int_handler
        for handler in handlers.values()
    ):
        for number in handlers:
            signal.signal(number, stop_later)
    yield


def _body_limit(settings: Settings, path: str) -> BodyLimit | None:
    if path == "/predict/stream":
        return None  # it has no end, and limits of its own
    if path == "/predict/file":
        return BodyLimit("max_file_bytes", settings.max_file_bytes, _UPLOAD_SECONDS)
    return BodyLimit("max_body_bytes", settings.max_body_bytes, settings.request_timeout_seconds)
