"""Descriptions of the models, and the admin routes that load and unload them."""

import logging
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from models.errors import GMergingError
from models.task import TaskInfo
from service.core.engine import EngineInfo
from service.core.explaining import explanations_of
from service.core.models import DefaultModelError, UnknownModelError
from service.http.problems import ProblemError
from service.http.routes.common import AcceptingDep, ServicesDep, problems, revalidated
from service.schemas import (
    AdminModel,
    AdminModelsResponse,
    LabelOut,
    MeaningOut,
    ModelAction,
    ModelResponse,
    TaskExperts,
    TaskOut,
    TasksResponse,
)
from service.services import Services

log = logging.getLogger(__name__)
router = APIRouter(tags=["models"])
admin_router = APIRouter(prefix="/admin", tags=["admin"])
_ModelQuery = Annotated[
    str | None, Query(max_length=128, description="name of a model; the default one if left out")
]
_ModelPath = Annotated[str, Path(max_length=128)]
_UNCHANGED = "What the client has, whose `ETag` is in `If-None-Match`, is still right"
_LIMITS = {"max_molecules", "max_atoms", "max_smiles_length", "max_body_bytes", "max_file_bytes"}


@router.get(
    "/tasks",
    summary="Tasks and their labels",
    response_model=TasksResponse,
    responses={304: {"description": _UNCHANGED}, **problems(401, 422, 503)},
)
async def tasks(request: Request, services: AcceptingDep, model: _ModelQuery = None) -> Response:
    """List the tasks of a model, with their labels and inputs.

    A task is a data set; its labels are what is predicted.
    """
    info = services.models.get(model).info
    return revalidated(request, TasksResponse(tasks=[_task(info, task) for task in info.tasks]))


def _task(info: EngineInfo, task: str) -> TaskOut:
    described = info.task_infos[task]
    return TaskOut(
        name=task,
        **described.model_dump(include={"description", "labels", "level", "target"}),
        units=described.unit_of or None,
        experts=_experts(info, task),
        **info.input.of_task(task),
        stream=info.stream_of.get(task),
        difference=info.details.get("metrics", {}).get("difference", {}).get(task),
        explanations=explanations_of(info, task),
        meaning=_meaning(described),
    )


def _meaning(described: TaskInfo) -> MeaningOut | None:
    meaning = described.meaning
    if meaning is None:
        return None
    labels = zip(described.labels, meaning.labels, strict=True)
    return MeaningOut(
        source=meaning.source,
        terms=meaning.terms,
        counted=meaning.counted,
        answered_by=meaning.answered_by,
        labels={name: LabelOut(**vars(own), base_rate=own.share_of_ones) for name, own in labels},
    )


def _experts(info: EngineInfo, task: str) -> TaskExperts | None:
    forest = info.forests.get(task)
    return None if forest is None else TaskExperts(**forest.model_dump())


@router.get(
    "/model",
    summary="The model and the limits of the service",
    response_model=ModelResponse,
    responses={304: {"description": _UNCHANGED}, **problems(401, 422, 503)},
)
async def model(request: Request, services: AcceptingDep, model: _ModelQuery = None) -> Response:
    """Describe a model as its artifact does: shape, provenance, measured quality."""
    return revalidated(request, _model_response(services, services.models.get(model).info))


@router.get(
    "/model/card",
    summary="The model card",
    response_class=Response,
    responses={
        200: {
            "content": {"text/markdown": {"schema": {"type": "string"}}},
            "description": "The card, in Markdown",
        },
        **problems(401, 404, 422, 503),
    },
)
async def model_card(services: AcceptingDep, model: _ModelQuery = None) -> Response:
    """Return a model's card, in Markdown: what it was made from, test scores, limits."""
    info = services.models.get(model).info
    if not info.card:
        raise ProblemError(404, "not_found", f"got model {info.name}, which has no model card")
    return Response(info.card, media_type="text/markdown")


def _model_response(services: Services, info: EngineInfo) -> ModelResponse:
    limits = services.settings.model_dump(include=_LIMITS)
    return ModelResponse(
        name=info.name,
        version=info.version,
        digest=info.digest,
        device=info.device,
        input=info.input,
        tasks=list(info.tasks),
        sites=list(info.sites),
        limits=limits,
        models=services.models.names,
        **info.details,
    )


@admin_router.get(
    "/models", summary="Models that are or could be loaded", responses=problems(401, 403, 503)
)
async def list_models(services: ServicesDep) -> AdminModelsResponse:
    """List the default model and every artifact in the folder of models."""
    names = services.models.available()
    return AdminModelsResponse(models=[_admin_model(services, name) for name in names])


@admin_router.post(
    "/models/{name}",
    summary="Load, reload or unload a model",
    responses=problems(400, 401, 403, 404, 409, 415, 422, 500, 503),
)
async def change_model(name: _ModelPath, body: ModelAction, services: AcceptingDep) -> AdminModel:
    """Load, reload or unload a model without losing a request.

    The old model answers until the new one has answered a warm-up, and goes on if the new one
    cannot be used.
    """
    try:
        if body.action == "unload":
            await services.models.unload(name)
        elif body.action == "reload" and name not in services.models.names:
            raise UnknownModelError(name, services.models.names)
        else:
            await services.models.load(name)
    except UnknownModelError as error:
        raise ProblemError(404, "unknown_model", str(error)) from None
    except DefaultModelError as error:
        raise ProblemError(409, "default_model", str(error)) from None
    except GMergingError as error:
        log.error("model %s was refused: %s", name, error)
        detail = f"the artifact cannot be used, what answered before still does: {error}"
        raise ProblemError(422, error.code, detail) from None
    return _admin_model(services, name)


def _admin_model(services: Services, name: str) -> AdminModel:
    if name not in services.models.names:
        return AdminModel(model=name, loaded=False, default=False)
    artifact, version, digest = services.models.get(name).info.artifact
    return AdminModel(
        model=name,
        loaded=True,
        default=name == services.models.default,
        name=artifact,
        version=version,
        digest=digest,
    )
