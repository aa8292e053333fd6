"""The HTTP interface: each function checks, calls, and answers."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Body, Depends, Request, Response
from fastapi.responses import PlainTextResponse, RedirectResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.types import Receive

from service.answers import render
from service.metrics import Metrics
from service.parsing import Source, Unreadable
from service.pipeline import Pipeline
from service.problems import CLIENT_CLOSED_REQUEST, ProblemError, not_ready
from service.schemas import (
    PREDICT_EXAMPLES,
    HealthResponse,
    ModelResponse,
    PredictRequest,
    PredictResponse,
    Problem,
    TaskOut,
    TasksResponse,
)
from service.settings import Settings

T = TypeVar("T")
router = APIRouter()


async def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


async def _metrics(request: Request) -> Metrics:
    metrics: Metrics = request.app.state.metrics
    return metrics


async def _ready_pipeline(request: Request) -> Pipeline:
    pipeline: Pipeline | None = request.app.state.pipeline
    if pipeline is None or not pipeline.ready:
        raise not_ready()
    return pipeline


SettingsDep = Annotated[Settings, Depends(_settings)]
MetricsDep = Annotated[Metrics, Depends(_metrics)]
PipelineDep = Annotated[Pipeline, Depends(_ready_pipeline)]


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    reasons = {
        400: "The body is not JSON",
        413: "The body is too large",
        415: "The body is not declared as JSON",
        422: "The request, or its only molecule, cannot be read; a task is unknown; a limit is passed",
        429: "The queue is full; `Retry-After` says when to come back",
        500: "The service failed",
        503: "The service is starting or stopping",
    }
    return {status: {"model": Problem, "description": reasons[status]} for status in statuses}


@router.post(
    "/predict",
    tags=["predictions"],
    summary="Predict every task for molecules",
    response_class=Response,
    responses={200: {"model": PredictResponse, "description": "Answers in the order of the request"}, **_problems(400, 413, 415, 422, 429, 500, 503)},
)
async def predict(
    body: Annotated[PredictRequest, Body(openapi_examples=PREDICT_EXAMPLES)],
    request: Request,
    pipeline: PipelineDep,
    settings: SettingsDep,
    metrics: MetricsDep,
) -> Response:
    """Probabilities per task and label.

    A molecule that cannot be read has an `error` and hinders no other; if it is the only one of the request, the answer is a 422 problem.
    The answer for a molecule is a function of the molecule, the task and the artifact: what else is asked at the same time does not matter.
    """
    sources = _sources(body, settings)
    tasks = _tasks(body, pipeline)
    results = await _unless_gone(request.receive, pipeline.predict(sources, tasks, body.routing))
    if results is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    if len(results) == 1 and isinstance(results[0], Unreadable):
        raise ProblemError(422, results[0].code, results[0].message)
    started = time.perf_counter()
    content = await render(results, pipeline.info, tasks, "routing" in body.explain)
    metrics.stage("serialise", time.perf_counter() - started)
    return Response(content, media_type="application/json")


def _sources(body: PredictRequest, settings: Settings) -> list[Source]:
    sources: list[Source] = [*(body.smiles or ()), *(body.graphs or ())]
    limit = settings.max_molecules
    if len(sources) > limit:
        detail = f"got {len(sources)} molecules, expected at most {limit} (max_molecules)"
        raise ProblemError(422, "too_many_molecules", detail, limit={"max_molecules": limit})
    return sources


def _tasks(body: PredictRequest, pipeline: Pipeline) -> tuple[str, ...]:
    known = pipeline.info.tasks
    tasks = known if body.tasks is None else tuple(body.tasks)
    unknown = [task for task in tasks if task not in known]
    if unknown:
        detail = f"got unknown task {unknown[0]!a}, expected some of {', '.join(known)}"
        raise ProblemError(422, "unknown_task", detail, known_tasks=known)
    return tasks


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of the work, or None if the client went away: its molecules then leave the queue."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@router.get("/tasks", tags=["model"], summary="Tasks and their labels", responses=_problems(503))
async def tasks(pipeline: PipelineDep) -> TasksResponse:
    """Every task of the model: a task is a data set, its labels are what is predicted."""
    info = pipeline.info
    return TasksResponse(tasks=[TaskOut(name=task, description=info.descriptions[task], labels=labels) for task, labels in info.labels.items()])


@router.get("/model", tags=["model"], summary="The model and the limits of the service", responses=_problems(503))
async def model(pipeline: PipelineDep, settings: SettingsDep) -> ModelResponse:
    """What the artifact says about itself: shape, provenance, measured quality."""
    info = pipeline.info
    limits = settings.model_dump(include={"max_molecules", "max_atoms", "max_smiles_length", "max_body_bytes"})
    return ModelResponse(
        name=info.name,
        version=info.version,
        digest=info.digest,
        device=info.device,
        tasks=list(info.tasks),
        sites=list(info.sites),
        limits=limits,
        **info.details,
    )


@router.get("/healthz", tags=["operation"], summary="Is the process alive?")
async def healthz() -> HealthResponse:
    """Restart the process if this does not answer."""
    return HealthResponse(status="alive")


@router.get("/readyz", tags=["operation"], summary="Can it answer predictions?", responses=_problems(503))
async def readyz(_: PipelineDep) -> HealthResponse:
    """Send requests only while this answers 200: the engine has answered a warm-up and the service is not stopping."""
    return HealthResponse(status="ready")


@router.get("/metrics", tags=["operation"], summary="Prometheus metrics", response_class=PlainTextResponse)
async def metrics(metrics: MetricsDep) -> Response:
    """Prometheus text format."""
    return Response(metrics.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})


@router.get("/", include_in_schema=False)
async def root() -> RedirectResponse:
    """To the interactive documentation."""
    return RedirectResponse("/docs")
