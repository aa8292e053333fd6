"""Dependencies, checks and documentation that the routes share."""

import hashlib
import time
from collections.abc import Sequence
from typing import Annotated, Any, get_args, get_origin

from fastapi import Depends, Header, Request, Response
from pydantic import BaseModel

from models.errors import did_you_mean
from service.core.answer import Result
from service.core.engine import PredictionQuery
from service.core.explaining import NOTHING, Explained
from service.core.reading import InChI, ItemFailure, MolBlock, Source
from service.http.problems import ProblemError, not_ready, printable
from service.http.streaming import unless_disconnected
from service.schemas import Problem, TextRequest
from service.security import Client
from service.services import Services

_REASONS = {
    400: "The body is not JSON",
    401: "The key is missing or unknown",
    403: "The key may not do this",
    404: "There is no such thing",
    408: "The body came too slowly",
    409: "It cannot be done in this state",
    413: "The body is too large",
    415: "The body is not of a type that can be read",
    422: (
        "The request, or its only molecule or graph, cannot be read, or is not what the model"
        " takes; a model or task is unknown; a limit is passed"
    ),
    429: "The queue is full, or the key's rate is used up; `Retry-After` says when to come back",
    500: "The service failed",
    503: "The service is starting or stopping",
    504: "The deadline came before the answer",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI entries of the problems that a route may answer with."""
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


async def refuse_unknown_parameters(request: Request) -> None:
    """Refuse query parameters that the route does not declare, or that are given too often.

    Raises:
        ProblemError: names the parameter, and the declared one of the nearest name.
    """
    given = [name for name, _ in request.query_params.multi_items()]
    if not given:
        return
    declared = request.scope["route"].dependant.query_params
    takes_many = {field.alias: _takes_many(field.field_info.annotation) for field in declared}
    for name in given:
        if name not in takes_many:
            expected = f"one of {', '.join(takes_many)}" if takes_many else "none"
            detail = f"got an unknown parameter {name[:64]!a}, expected {expected}"
            detail += did_you_mean(name, takes_many)
        elif given.count(name) > 1 and not takes_many[name]:
            detail = f"got it {given.count(name)} times, expected it once"
        else:
            continue
        pointer = printable(f"query {name[:64]}")
        errors = [{"pointer": pointer, "detail": detail}]
        raise ProblemError(422, "invalid_request", f"{pointer}: {detail}", errors=errors)


def _takes_many(annotation: Any) -> bool:
    return any(get_origin(kind) is list for kind in (annotation, *get_args(annotation)))


def text_sources(body: TextRequest) -> list[Source]:
    """Return the molecules that a request gives as text, in their order."""
    sources: list[Source] = [*(body.smiles or ())]
    sources += [InChI(text) if isinstance(text, str) else text for text in body.inchi or ()]
    sources += [MolBlock(text) if isinstance(text, str) else text for text in body.mol_block or ()]
    return sources


def check_count(count: int, limit: int) -> None:
    """Raise ProblemError if a request has more molecules than the limit `max_molecules`."""
    if count > limit:
        detail = f"got {count} molecules, expected at most {limit} (max_molecules)"
        raise ProblemError(422, "too_many_molecules", detail, limit={"max_molecules": limit})


def revalidated(request: Request, content: BaseModel) -> Response:
    """Return a description as JSON, or 304 where the client has it.

    The client asks every time, and nobody else keeps it: it may take a key to see it.
    """
    body = content.model_dump_json().encode()
    # Weak: the same content may be compressed or not.
    tag = f'W/"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    known = request.headers.get("if-none-match", "")
    if tag in (value.strip() for value in known.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")


def refuse_if_alone(results: Sequence[object]) -> None:
    """Raise ProblemError if the only molecule or graph of a request could not be answered."""
    if len(results) == 1 and isinstance(results[0], ItemFailure):
        raise ProblemError(422, results[0].code, results[0].message)


ServicesDep = Annotated[Services, Depends(_services)]
AcceptingDep = Annotated[Services, Depends(_accepting)]
ClientDep = Annotated[Client | None, Depends(_client)]
TimeoutHeader = Annotated[
    float | None,
    Header(
        alias="X-Request-Timeout",
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="seconds within which the answer is of use; at most the setting",
    ),
]


def seconds_left(request: Request, services: Services, timeout: float | None) -> float:
    """Return the seconds until the deadline of a request.

    Args:
        request: the request; its arrival was noted by the outermost middleware.
        services: their settings hold the longest time.
        timeout: time-out that the client asked for; None takes the longest.
    """
    limit = services.settings.request_timeout_seconds
    arrived: float = request.scope["arrived"]
    return (limit if timeout is None else min(timeout, limit)) - (time.perf_counter() - arrived)


async def predict_unless_disconnected(
    query: PredictionQuery,
    sources: Sequence[Source],
    request: Request,
    services: Services,
    client: Client | None,
    timeout: float | None,
    explained: Explained = NOTHING,
) -> list[Result] | None:
    """Predict within the time that the request has left, or stop when the client disconnects.

    Args:
        query: model, tasks and routing.
        sources: molecules and graphs, counted against the rate limit of the client.
        request: whose body has been read.
        services: the application's services.
        client: holder of the key; None without keys.
        timeout: seconds that the client allows; None for the limit of the service.
        explained: explanations to compute.

    Returns:
        One result per source; None if the client has disconnected.
    """
    seconds = seconds_left(request, services, timeout)
    services.keys.spend(client, len(sources))
    prediction = services.pipeline.predict(query, sources, seconds, explained=explained)
    return await unless_disconnected(request.receive, prediction)
