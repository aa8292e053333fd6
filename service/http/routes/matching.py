"""`POST /match`: substructure search."""

from typing import Annotated

import orjson
from fastapi import APIRouter, Body, Request, Response

from service.core.matching import Found, Search
from service.core.reading import ItemFailure
from service.formats.answers import failed_item
from service.http.problems import CLIENT_CLOSED_REQUEST, ProblemError
from service.http.routes.common import (
    AcceptingDep,
    ClientDep,
    TimeoutHeader,
    check_count,
    problems,
    refuse_if_alone,
    seconds_left,
    text_sources,
)
from service.http.streaming import unless_disconnected
from service.schemas import ASPIRIN, MatchRequest, MatchResponse
from service.services import Services

EXAMPLES = {
    "one": {
        "summary": "Which molecules have a carboxylic acid?",
        "value": {"smiles": [ASPIRIN, "CCO"], "smarts": "C(=O)[OH]"},
    }
}
router = APIRouter(tags=["molecules"])


@router.post(
    "/match",
    summary="Search molecules for a substructure",
    response_class=Response,
    responses={
        200: {"model": MatchResponse, "description": "Results in the order of the request"},
        **problems(400, 401, 413, 415, 422, 429, 500, 503, 504),
    },
)
async def match(
    body: Annotated[MatchRequest, Body(openapi_examples=EXAMPLES)],
    request: Request,
    services: AcceptingDep,
    client: ClientDep,
    timeout: TimeoutHeader = None,
) -> Response:
    """Search the molecules that `POST /predict` would read for a substructure, given as SMARTS.

    Hydrogen atoms are no atoms of their own there: `[CH3]` finds a methyl group, `[H]` nothing.

    A molecule that cannot be read, or in which the search takes too long, gets an `error` in its
    item, with the codes of `/predict`, and does not affect the others. If it is the only one of the
    request, the answer is a 422 problem, and so it is for a SMARTS that cannot be read
    (`invalid_smarts`).
    """
    sources = text_sources(body)
    check_count(len(sources), services.settings.max_molecules)
    services.keys.spend(client, len(sources))
    searches = [Search(source, body.smarts) for source in sources]
    found = _found(searches, services, seconds_left(request, services, timeout))
    results = await unless_disconnected(request.receive, found)
    if results is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    refuse_if_alone(results)
    items = [_item(k, result) for k, result in enumerate(results)]
    return Response(orjson.dumps({"matches": items}), media_type="application/json")


async def _found(
    searches: list[Search], services: Services, seconds: float
) -> list[Found | ItemFailure]:
    """Check the SMARTS, then search. Raises ProblemError if it cannot be read."""
    (smarts,) = await services.pipeline.check_smarts([searches[0].smarts], seconds)
    if isinstance(smarts, ItemFailure):
        raise ProblemError(422, smarts.code, f"smarts: {smarts.message}")
    return await services.pipeline.match(searches, seconds)


def _item(index: int, result: Found | ItemFailure) -> dict[str, object]:
    if isinstance(result, ItemFailure):
        return failed_item(index, result)
    atoms = result.occurrences
    return {"index": index, "smiles": result.smiles, "matches": bool(atoms), "atoms": atoms}
