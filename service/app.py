"""The application: joins settings, engine, routes and middleware. Nothing is built when this module is imported."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI

from service.engine import Engine, load_engine
from service.metrics import Metrics
from service.middleware import LimitBody, ObserveRequests
from service.parsing import ITEM_CODES
from service.pipeline import Pipeline
from service.problems import MEDIA_TYPE, install_handlers
from service.routes import router
from service.settings import Settings, load_settings

DESCRIPTION = "One merged graph neural network with a small adapter bank answers every task of every molecule."


class Application(FastAPI):
    """FastAPI whose OpenAPI document says that problems are `application/problem+json`, as they are."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        if self.openapi_schema is None:
            document = super().openapi()
            responses = [r for path in document["paths"].values() for operation in path.values() for r in operation["responses"].values()]
            for content in (response.get("content", {}) for response in responses):
                if content.get("application/json", {}).get("schema", {}).get("$ref", "").endswith("/Problem"):
                    content[MEDIA_TYPE] = content.pop("application/json")
            self.openapi_schema = document
        return self.openapi_schema


def create_app(settings: Settings | None = None, engine: Engine | None = None) -> FastAPI:
    """Build an application.

    Args:
        settings: from the environment if None.
        engine: what answers; loaded from the settings' artifact at start-up if None. Either way start-up ends with a warm-up and fails if that fails.
    """
    chosen = load_settings() if settings is None else settings
    metrics = Metrics(ITEM_CODES)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loaded = engine if engine is not None else await asyncio.to_thread(load_engine, chosen)
        pipeline = app.state.pipeline = Pipeline(loaded, chosen, metrics)
        await pipeline.start()
        try:
            yield
        finally:
            await pipeline.close()

    app = Application(title="G-Merging", version=version("g-merging"), description=DESCRIPTION, lifespan=lifespan)
    app.state.settings, app.state.metrics, app.state.pipeline = chosen, metrics, None
    app.include_router(router)
    install_handlers(app)
    app.add_middleware(LimitBody, max_bytes=chosen.max_body_bytes)
    app.add_middleware(ObserveRequests, metrics=metrics)  # added last, so outermost
    return app
