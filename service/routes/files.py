"""Many molecules: streams, files, and the jobs that long files become."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, File, Header, Path, Query, Request, Response, UploadFile
from fastapi.responses import FileResponse

from models.errors import InvalidInputError
from models.unified import DEFAULT_ROUTING, Routing
from service.files import MEDIA_TYPES, FileFormat, FileKind, MoleculeFile, OutputKind, ResultWriter, file_groups, kind_of, open_file
from service.jobs import Job, JobState, JobStore
from service.pipeline import Question
from service.problems import ProblemError
from service.routes.common import AcceptingDep, Body, ClientDep, ServicesDep, problems, question_of
from service.schemas import JobOut, JobsResponse
from service.security import Client
from service.services import Services
from service.streams import Answerer, StreamedResponse, in_order, model_headers, ndjson_answers, ndjson_groups

router = APIRouter()

_Tasks = Annotated[
    list[str] | None,
    Query(max_length=1000, description="tasks to answer, by name, each once, also with commas between them; all of them if left out"),
]
_Model = Annotated[str | None, Query(max_length=128, description="name of a model; the default one if left out")]
_Routing = Annotated[Routing, Query(description="`own`, `moe` or `merged`, as of `/predict`")]
_Explain = Annotated[bool, Query(description="add routing weights to each answer")]
_JobId = Annotated[str, Path(max_length=64)]


def _question(services: Services, model: str | None, tasks: list[str] | None, routing: Routing) -> Question:
    if tasks is not None:
        tasks = [name.strip() for names in tasks for name in names.split(",")]  # which no task's name holds
    if tasks is not None and len(set(tasks)) != len(tasks):
        raise ProblemError(422, "invalid_request", "got a task twice in tasks, expected each once")
    return question_of(services.models, model, tasks, routing)


_TEXT = {"schema": {"type": "string"}}
_FILE_ANSWER: dict[str, Any] = {
    "content": {"text/csv": _TEXT, "application/x-ndjson": _TEXT},
    "description": "A row for every record of the file, in order",
}
_STREAM_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/x-ndjson": {
                "schema": {
                    "type": "string",
                    "description": "one molecule or graph a line: a SMILES as a JSON string, or an object (schema StreamLine)",
                },
                "example": '"CCO"\n{"id": "a7", "smiles": "c1ccccc1"}\n',
            }
        },
    }
}


@router.post(
    "/predict/stream",
    tags=["predictions"],
    summary="Predict for as many molecules as you like, line by line",
    response_class=Response,
    responses={
        200: {"content": {"application/x-ndjson": _TEXT}, "description": "A line for every line, in order"},
        **problems(401, 422, 429, 503),
    },
    openapi_extra=_STREAM_BODY,
)
async def predict_stream(
    request: Request,
    services: AcceptingDep,
    client: ClientDep,
    model: _Model = None,
    tasks: _Tasks = None,
    routing: _Routing = DEFAULT_ROUTING,
    explain_routing: _Explain = False,
) -> Response:
    """NDJSON in, NDJSON out, answers as soon as there are any: read them while you write, or both sides wait for each other.

    Each line has the form of an item of `/predict`, with the line's `id` if it had one. A line that cannot be read has an `error`. A stream that the
    service ends early ends with a line of nothing but an `error`, which says how many lines were answered.
    """
    question = _question(services, model, tasks, routing)
    body = Body(request.receive)
    groups = ndjson_groups(body.parts(), services.settings.max_body_bytes)
    lines = ndjson_answers(groups, Answerer(services.pipeline, question, services.keys, client), explain_routing, body.gone)
    return StreamedResponse(lines, "application/x-ndjson", model_headers(question), services.streams, body.close)


@router.post(
    "/predict/file",
    tags=["predictions"],
    summary="Predict for a file: CSV, TSV, SMI or SDF",
    response_class=Response,
    responses={
        200: _FILE_ANSWER,
        202: {"model": JobOut, "description": "The file is long: its job, also in `Location`"},
        **problems(400, 401, 408, 413, 422, 429, 500, 503),
    },
)
async def predict_file(
    request: Request,
    services: AcceptingDep,
    client: ClientDep,
    file: Annotated[UploadFile, File(description="the file")],
    format: Annotated[FileKind | None, Query(description="of the file; by its name if left out")] = None,  # noqa: A002 - its name over the wire
    smiles_column: Annotated[str | None, Query(max_length=256, description="of a table; by default one that is called smiles, or the like")] = None,
    output: Annotated[OutputKind, Query(description="`csv`: the file's own columns, then ours; `ndjson`: items as of `/predict`")] = "csv",
    model: _Model = None,
    tasks: _Tasks = None,
    routing: _Routing = DEFAULT_ROUTING,
    prefer: Annotated[str, Header(description="`respond-async` makes a job of a short file too")] = "",
) -> Response:
    """Every record gets its row, one that cannot be read gets its error. A long file becomes a job, where the service keeps jobs."""
    question = _question(services, model, tasks, routing)
    question.engine.info.check_table(question.tasks)
    try:
        file_format = FileFormat(format if format is not None else kind_of(file.filename or ""), smiles_column)
        opened = await asyncio.to_thread(open_file, file.file, file_format)
    except InvalidInputError as error:
        raise ProblemError(422, "invalid_file", str(error)) from None
    long = "respond-async" in prefer.lower() or (file.size or 0) > services.settings.direct_file_bytes
    if services.jobs is not None and long:
        job = await asyncio.to_thread(services.jobs.create, file.file, _name(client), file_format, question, output)
        return Response(_shown(job).model_dump_json(), 202, {"Location": f"/jobs/{job.id}"}, "application/json")
    body = Body(request.receive)  # it has been read: what is left is whether the client is there
    rows = _answer_file(opened, Answerer(services.pipeline, question, services.keys, client), output, body.gone)
    return StreamedResponse(rows, MEDIA_TYPES[output], model_headers(question), services.streams, body.close)


async def _answer_file(file: MoleculeFile, answerer: Answerer, output: OutputKind, gone: asyncio.Future[None]) -> AsyncGenerator[bytes, None]:
    writer = ResultWriter(output, file.columns, answerer.question.engine.info, answerer.question.tasks)
    yield writer.header()
    async with contextlib.aclosing(in_order(file_groups(file), answerer, gone)) as answers:
        async for answered in answers:
            yield writer.rows(answered)


@router.get("/jobs", tags=["jobs"], summary="Your jobs, the newest first", responses=problems(401, 503))
async def list_jobs(services: ServicesDep, client: ClientDep) -> JobsResponse:
    """Those of the key that asks; without keys, all."""
    jobs = [] if services.jobs is None else await asyncio.to_thread(services.jobs.all_of, _name(client))
    return JobsResponse(jobs=[_shown(job) for job in jobs])


@router.get("/jobs/{job_id}", tags=["jobs"], summary="How a job stands", responses=problems(401, 404, 422, 503))
async def get_job(job_id: _JobId, services: ServicesDep, client: ClientDep) -> JobOut:
    """State and progress."""
    return _shown((await _job(job_id, services, client))[1])


@router.get(
    "/jobs/{job_id}/result",
    tags=["jobs"],
    summary="What a job answered",
    response_class=Response,
    responses={
        200: _FILE_ANSWER,
        **problems(401, 404, 409, 422, 503),
    },
)
async def get_result(job_id: _JobId, services: ServicesDep, client: ClientDep) -> Response:
    """Once it is done."""
    store, job = await _job(job_id, services, client)
    if job.state != "done":
        raise ProblemError(409, "job_not_done", f"the job is {job.state}, expected done" + (f": {job.error}" if job.error else ""))
    headers = {"X-Model-Digest": job.digest}
    return FileResponse(store.result_path(job), headers=headers, media_type=MEDIA_TYPES[job.output], filename=f"{job.id}.{job.output}")


@router.delete("/jobs/{job_id}", tags=["jobs"], summary="Stop a job, or forget one that is over", responses=problems(401, 404, 422, 503))
async def delete_job(job_id: _JobId, services: ServicesDep, client: ClientDep) -> JobOut:
    """Its files are removed at once."""
    store, job = await _job(job_id, services, client)
    stopped = await asyncio.to_thread(store.cancel, job)
    return _shown(job, "cancelled" if stopped else None)


async def _job(job_id: str, services: Services, client: Client | None) -> tuple[JobStore, Job]:
    job = None if services.jobs is None else await asyncio.to_thread(services.jobs.get, job_id, _name(client))
    if services.jobs is None or job is None:
        raise ProblemError(404, "unknown_job", "there is no such job, or it is another client's, or its time was over")
    return services.jobs, job


def _name(client: Client | None) -> str:
    return "" if client is None else client.name


def _shown(job: Job, state: JobState | None = None) -> JobOut:
    return JobOut(
        id=job.id,
        state=state or job.state,
        created=datetime.fromtimestamp(job.created, UTC),
        finished=datetime.fromtimestamp(job.finished, UTC) if job.finished else None,
        total=job.total or None,
        answered=job.answered,
        failed=job.failed,
        progress=1.0 if job.state == "done" else job.answered / job.total if job.total else 0.0,
        digest=job.digest or None,
        error=job.error or None,
    )
