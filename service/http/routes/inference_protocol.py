"""Routes of the Open Inference Protocol (`/v2`)."""

from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from models.errors import InvalidInputError
from service.core.answer import Answer
from service.core.engine import Engine
from service.core.models import UnknownModelError
from service.formats.inference_protocol import (
    EXTENSIONS,
    HEADER_LENGTH,
    InferRequest,
    InferResponse,
    ModelMetadata,
    ModelNames,
    ServerMetadata,
    model_metadata,
    read_request,
    write_response,
)
from service.http.problems import CLIENT_CLOSED_REQUEST, ProblemError, not_ready
from service.http.routes.common import (
    AcceptingDep,
    ClientDep,
    ServicesDep,
    TimeoutHeader,
    predict_unless_disconnected,
    problems,
)
from service.security import Client
from service.services import Services

router = APIRouter(prefix="/v2", tags=["open inference protocol"])
health_router = APIRouter(prefix="/v2/health", tags=["open inference protocol"])
_ModelPath = Annotated[str, Path(max_length=128)]
_VersionPath = Annotated[str, Path(max_length=128)]
_INFER_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/InferRequest"},
                "example": {
                    "inputs": [
                        {"name": "smiles", "datatype": "BYTES", "shape": [2], "data": ["CCO", "C"]}
                    ],
                    "outputs": [{"name": "clintox"}],
                },
            }
        },
    }
}
_INFER: dict[str, Any] = {
    "response_class": Response,
    "responses": {
        200: {"model": InferResponse, "description": "A tensor for each task"},
        **problems(400, 401, 404, 408, 413, 415, 422, 429, 500, 503, 504),
    },
    "openapi_extra": _INFER_BODY,
}


@health_router.get("/live", summary="Is the process alive?")
async def live() -> dict[str, bool]:
    """Answer like `/healthz`."""
    return {"live": True}


@health_router.get("/ready", summary="Should inference be asked for here?", responses=problems(503))
async def ready(services: ServicesDep) -> dict[str, bool]:
    """Answer like `/readyz`."""
    if not services.pipeline.ready:
        raise not_ready()
    return {"ready": True}


@router.get("", summary="What the server is", responses=problems(401))
async def server() -> ServerMetadata:
    """Return the name, version and protocol extensions of the server."""
    return ServerMetadata(
        name="g-merging", version=version("g-merging"), extensions=list(EXTENSIONS)
    )


@router.get("/models", summary="Which models answer?", responses=problems(401, 503))
async def models(services: AcceptingDep) -> ModelNames:
    """List the names of the loaded models, the default one first."""
    return ModelNames(models=services.models.names)


@router.get(
    "/models/{name}",
    summary="What a model takes and gives",
    response_model_exclude_none=True,
    responses=problems(401, 404, 422, 503),
)
async def metadata(name: _ModelPath, services: AcceptingDep) -> ModelMetadata:
    """Describe the input of a model, SMILES, and one output per task."""
    return model_metadata(name, _engine(services, name).info)


@router.get(
    "/models/{name}/versions/{version}",
    summary="What a version of a model takes and gives",
    response_model_exclude_none=True,
    responses=problems(401, 404, 422, 503),
)
async def version_metadata(
    name: _ModelPath, version: _VersionPath, services: AcceptingDep
) -> ModelMetadata:
    """Describe the one version of a model that exists, its artifact's."""
    return model_metadata(name, _engine(services, name, version).info)


@router.get(
    "/models/{name}/ready", summary="Does a model answer?", responses=problems(401, 404, 422, 503)
)
async def model_ready(name: _ModelPath, services: AcceptingDep) -> dict[str, str | bool]:
    """Answer 200 if the model is loaded."""
    _engine(services, name)
    return {"name": name, "ready": True}


@router.get(
    "/models/{name}/versions/{version}/ready",
    summary="Does a version of a model answer?",
    responses=problems(401, 404, 422, 503),
)
async def version_ready(
    name: _ModelPath, version: _VersionPath, services: AcceptingDep
) -> dict[str, str | bool]:
    """Answer 200 if this version of the model is loaded."""
    _engine(services, name, version)
    return {"name": name, "ready": True}


@router.post("/models/{name}/infer", summary="Infer", **_INFER)
async def infer(
    name: _ModelPath,
    request: Request,
    services: AcceptingDep,
    client: ClientDep,
    timeout: TimeoutHeader = None,
) -> Response:
    """Predict every task and label for molecules.

    A molecule that cannot be read fails the request, and the error names it.
    """
    return await _infer(name, None, request, services, client, timeout)


@router.post(
    "/models/{name}/versions/{version}/infer", summary="Infer with a version of a model", **_INFER
)
async def version_infer(
    name: _ModelPath,
    version: _VersionPath,
    request: Request,
    services: AcceptingDep,
    client: ClientDep,
    timeout: TimeoutHeader = None,
) -> Response:
    """Predict with a version of the model, which must be its artifact's."""
    return await _infer(name, version, request, services, client, timeout)


async def _infer(
    name: str,
    version: str | None,
    request: Request,
    services: Services,
    client: Client | None,
    timeout: float | None,
) -> Response:
    _engine(services, name, version)  # before the body is read
    body, smiles = await _read(request)
    limit = services.settings.max_molecules
    if len(smiles) > limit:
        detail = f"got {len(smiles)} molecules, expected at most {limit}"
        raise ProblemError(422, "too_many_molecules", detail, limit={"max_molecules": limit})
    tasks = list(dict.fromkeys(output.name for output in body.outputs or ()))
    parameters = body.parameters
    choice = parameters.routing, parameters.expert_choice
    query = services.models.query(name, tasks or None, *choice)
    _check_version(name, version, query.engine)  # replaced while the body was read
    query.engine.info.check_table(query.tasks)
    results = await predict_unless_disconnected(query, smiles, request, services, client, timeout)
    if results is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    for index, result in enumerate(results):
        if not isinstance(result, Answer):
            raise ProblemError(422, result.code, f"smiles[{index}]: {result.message}")
    answers = [result for result in results if isinstance(result, Answer)]
    info, outputs = query.engine.info, tasks or query.tasks
    content, json_length = write_response(body, name, info, outputs, answers)
    if json_length is None:
        return Response(content, media_type="application/json")
    headers = {HEADER_LENGTH: str(json_length)}
    return Response(content, headers=headers, media_type="application/octet-stream")


async def _read(request: Request) -> tuple[InferRequest, list[str]]:
    try:
        return read_request(await request.body(), request.headers.get(HEADER_LENGTH))
    except InvalidInputError as error:
        raise ProblemError(400, "invalid_request", str(error)) from None


def _engine(services: Services, name: str, version: str | None = None) -> Engine:
    """Return the engine of a model, and check its version if one is given.

    Raises:
        ProblemError: 404, because in this protocol model and version belong to the address.
    """
    try:
        engine = services.models.get(name)
    except UnknownModelError as error:
        raise ProblemError(404, "unknown_model", str(error)) from None
    _check_version(name, version, engine)
    return engine


def _check_version(name: str, version: str | None, engine: Engine) -> None:
    loaded = engine.info.version
    if version is not None and version != loaded:
        got = f"got version {version[:64]!a} of {name}"
        detail = f"{got}, expected the one that there is, {loaded!a}"
        raise ProblemError(404, "unknown_version", detail)
