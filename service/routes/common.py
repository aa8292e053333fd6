"""What routes share: the parts of the application, the checks on a question, the descriptions of problems."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request
from starlette.types import Receive

from models.unified import Routing
from service.pipeline import Question
from service.problems import ProblemError, not_ready
from service.registry import ModelRegistry
from service.schemas import Problem
from service.security import Client
from service.services import Services

T = TypeVar("T")

_REASONS = {
    400: "The body is not JSON",
    401: "The key is missing or unknown",
    403: "The key may not do this",
    404: "There is no such thing",
    408: "The body came too slowly",
    409: "It cannot be done in this state",
    413: "The body is too large",
    415: "The body is not of a type that can be read",
    422: "The request, or its only molecule, cannot be read; a model or task is unknown; a limit is passed",
    429: "The queue is full, or the key's rate is used up; `Retry-After` says when to come back",
    500: "The service failed",
    503: "The service is starting or stopping",
    504: "The deadline came before the answer",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problems that a route may answer with, for its documentation."""
    return {status: {"model": Problem, "description": _REASONS[status]} for status in statuses}


async def _services(request: Request) -> Services:
    services: Services | None = request.app.state.services
    if services is None:
        raise not_ready()
    return services


async def _accepting(services: Annotated[Services, Depends(_services)]) -> Services:
    if not services.pipeline.accepts:
        raise not_ready()
    return services


async def _client(request: Request) -> Client | None:
    client: Client | None = request.scope.get("client_of_key")
    return client


ServicesDep = Annotated[Services, Depends(_services)]
AcceptingDep = Annotated[Services, Depends(_accepting)]
ClientDep = Annotated[Client | None, Depends(_client)]
TimeoutHeader = Annotated[
    float | None,
    Header(
        alias="X-Request-Timeout", gt=0, le=3600, allow_inf_nan=False, description="seconds within which the answer is of use; at most the setting"
    ),
]


def seconds_left(services: Services, timeout: float | None) -> float:
    """Until the deadline of a request that comes now."""
    limit = services.settings.request_timeout_seconds
    return limit if timeout is None else min(timeout, limit)


def question_of(models: ModelRegistry, model: str | None, tasks: Sequence[str] | None, routing: Routing) -> Question:
    """What a request asks, checked. Raises UnknownModelError, or ProblemError for a task that the model does not have."""
    engine = models.get(model)
    known = engine.info.tasks
    asked = known if tasks is None else tuple(tasks)
    unknown = [task for task in asked if task not in known]
    if unknown:
        detail = f"got unknown task {unknown[0]!a}, expected some of {', '.join(known)}"
        raise ProblemError(422, "unknown_task", detail, known_tasks=known)
    return Question.of(models.default if model is None else model, engine, asked, routing)


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of the work, or None if the client went away: its molecules then leave the queue."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        gone.cancel()


async def body_until_gone(request: Request, gone: asyncio.Future[None]) -> AsyncIterator[bytes]:
    """The body's chunks; after the last, `gone` is done as soon as the client goes away. Raises ClientDisconnect if it does so before."""
    async for chunk in request.stream():
        yield chunk
    watch_client(request, gone)


def watch_client(request: Request, gone: asyncio.Future[None]) -> None:
    """Set `gone` when the client of a request whose body has been read goes away."""

    def tell(_: asyncio.Task[None]) -> None:
        if not gone.done():
            gone.set_result(None)

    watching = asyncio.create_task(_disconnected(request.receive), name="watch client")
    watching.add_done_callback(tell)
    gone.add_done_callback(lambda _: watching.cancel())


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
