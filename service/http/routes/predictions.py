"""`POST /predict`: predictions for molecules or graphs in one JSON request."""

import time
from typing import Annotated

from fastapi import APIRouter, Body, Request, Response

from service.core.explaining import MOST_LABELS, Explained
from service.core.reading import NO_FINGERPRINT, InChI, MolBlock, Remainder, Source
from service.formats.answers import render
from service.http.problems import CLIENT_CLOSED_REQUEST, ProblemError
from service.http.routes.common import (
    AcceptingDep,
    ClientDep,
    TimeoutHeader,
    check_count,
    predict_unless_disconnected,
    problems,
    refuse_if_alone,
    text_sources,
)
from service.schemas import PREDICT_EXAMPLES, PredictRequest, PredictResponse

router = APIRouter(tags=["predictions"])


@router.post(
    "/predict",
    summary="Predict every task for molecules or graphs",
    response_class=Response,
    responses={
        200: {"model": PredictResponse, "description": "Answers in the order of the request"},
        **problems(400, 401, 413, 415, 422, 429, 500, 503, 504),
    },
)
async def predict(
    body: Annotated[PredictRequest, Body(openapi_examples=PREDICT_EXAMPLES)],
    request: Request,
    services: AcceptingDep,
    client: ClientDep,
    timeout: TimeoutHeader = None,
) -> Response:
    """Predict per task and label: probabilities, values, or energies and forces.

    `GET /tasks` says which of them a task answers, and whether for the graph or for each node.

    A molecule or graph that cannot be read, or is not what the model takes, gets an `error` in its
    item and does not affect the others. If it is the only one of the request, the answer is a 422
    problem. An answer is a function of the molecule or graph, the task and the artifact, whatever
    else is asked at the same time.
    """
    sources = _sources(body, services.settings.max_molecules)
    query = services.models.query(body.model, body.tasks, body.routing, body.expert_choice)
    info = query.engine.info
    explained = Explained.checked(
        body.explain, info, query.tasks, body.explain_labels, most_labels=MOST_LABELS
    )
    if body.graphs is not None and query.requirements.by_forest:
        raise ProblemError(422, "unsupported_input", NO_FINGERPRINT)
    results = await predict_unless_disconnected(
        query, sources, request, services, client, timeout, explained
    )
    if results is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    refuse_if_alone(results)
    started = time.perf_counter()
    tasks = info.tasks if body.tasks is None else body.tasks
    content = await render(results, info, tasks, body.explain)
    services.metrics.stage("serialise", time.perf_counter() - started)
    return Response(content, media_type="application/json")


def _sources(body: PredictRequest, limit: int) -> list[Source]:
    sources = [*text_sources(body), *(body.graphs or ())]
    check_count(len(sources), limit)
    if body.without_atoms is None:
        return sources
    return [
        Remainder(source, tuple(atoms))
        if atoms and isinstance(source, str | MolBlock | InChI)
        else source
        for source, atoms in zip(sources, body.without_atoms, strict=True)
    ]
