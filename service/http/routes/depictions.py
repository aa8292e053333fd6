"""`POST /depict`: pictures of molecules."""

from typing import Annotated

import orjson
from fastapi import APIRouter, Body, Request, Response

from models.data.depiction import DepictionStyle
from service.core.drawing import Depicted, Drawing
from service.core.reading import ItemFailure
from service.formats.answers import failed_item
from service.http.problems import CLIENT_CLOSED_REQUEST
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
from service.schemas import ASPIRIN, DepictRequest, DepictResponse

SVG = "image/svg+xml"
EXAMPLES = {
    "one": {"summary": "One molecule", "value": {"smiles": ASPIRIN}},
    "coloured": {
        "summary": "Atoms coloured by weights",
        "value": {"smiles": ["CCO"], "weights": [[0.1, -0.4, 1.0]], "theme": "dark"},
    },
}
router = APIRouter(tags=["pictures"])


@router.post(
    "/depict",
    summary="Draw molecules",
    response_class=Response,
    responses={
        200: {
            "model": DepictResponse,
            "content": {SVG: {}},
            "description": "Pictures in the order of the request; of a single molecule the SVG"
            " itself, where `Accept` asks for image/svg+xml",
        },
        **problems(400, 401, 413, 415, 422, 429, 500, 503, 504),
    },
)
async def depict(
    body: Annotated[DepictRequest, Body(openapi_examples=EXAMPLES)],
    request: Request,
    services: AcceptingDep,
    client: ClientDep,
    timeout: TimeoutHeader = None,
) -> Response:
    """Draw the molecules that `POST /predict` would read, each as its canonical SMILES.

    A molecule that cannot be read gets an `error` in its item, with the codes of `/predict`, and
    does not affect the others. If it is the only one of the request, the answer is a 422 problem.
    Pictures have a transparent background.
    """
    sources = text_sources(body)
    check_count(len(sources), services.settings.max_molecules)
    style = DepictionStyle(body.width, body.height, body.theme)
    weights = [None] * len(sources) if body.weights is None else body.weights
    drawings = [
        Drawing(source, style, None if own is None else tuple(own))
        for source, own in zip(sources, weights, strict=True)
    ]
    services.keys.spend(client, len(drawings))
    drawn = services.pipeline.depict(drawings, seconds_left(request, services, timeout))
    results = await unless_disconnected(request.receive, drawn)
    if results is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    refuse_if_alone(results)
    if len(results) == 1 and SVG in request.headers.get("accept", ""):
        (picture,) = results
        assert isinstance(picture, Depicted)
        return Response(picture.svg, media_type=SVG)
    items = [_item(k, result) for k, result in enumerate(results)]
    return Response(orjson.dumps({"pictures": items}), media_type="application/json")


def _item(index: int, result: Depicted | ItemFailure) -> dict[str, object]:
    if isinstance(result, ItemFailure):
        return failed_item(index, result)
    return {"index": index, "smiles": result.smiles, "svg": result.svg}
