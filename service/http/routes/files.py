"""Predictions for many molecules: streams, files, and the jobs that long files become."""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Annotated, Any, BinaryIO
from urllib.parse import quote

from fastapi import (
    APIRouter,
    Depends,
    File,
    Form,
    Header,
    Path,
    Query,
    Request,
    Response,
    UploadFile,
)
from fastapi.responses import FileResponse

from models.errors import InvalidInputError, did_you_mean
from models.experts.combination import expert_choice
from models.experts.unified import DEFAULT_ROUTING, Routing
from service.bulk.flow import Answerer, file_groups, in_order
from service.bulk.jobs import Job, JobState, JobStore
from service.bulk.ndjson import ndjson_answers, ndjson_groups
from service.core.engine import PredictionQuery
from service.core.explanations.rows import explained_rows, row_explanations
from service.formats.kinds import FileKind, kind_of
from service.formats.molecule_files import (
    MEDIA_TYPES,
    FileFormat,
    FileTooLargeError,
    OutputKind,
    decompressed,
    open_file,
)
from service.formats.row_writers import RowWriter, row_writer
from service.http.problems import ProblemError, printable, too_large
from service.http.routes.common import AcceptingDep, ClientDep, ServicesDep, problems
from service.http.streaming import Body, StreamedResponse, model_headers
from service.schemas import JobOut, JobsResponse, RowExplanation
from service.security import Client
from service.services import Services

router = APIRouter()
_Tasks = Annotated[
    list[str] | None,
    Query(
        max_length=1000,
        description=(
            "tasks to answer, by name, each once, also with commas between them; all of them if"
            " left out"
        ),
    ),
]
_Model = Annotated[
    str | None, Query(max_length=128, description="name of a model; the default one if left out")
]
_Routing = Annotated[Routing, Query(description="`own`, `moe` or `merged`, as of `/predict`")]
_Experts = Annotated[
    list[str] | None,
    Query(
        max_length=2,
        description=(
            "`own`, `forest` or both, also with a comma between them, as of `/predict`; each task's"
            " default if left out"
        ),
    ),
]
_Explain = Annotated[bool, Query(description="add routing weights to each answer")]
_ExplainExperts = Annotated[bool, Query(description="add what every expert answers")]
_ExplainRows = Annotated[
    list[str] | None,
    Query(
        max_length=10,
        description=(
            "`drugs` adds what percentage of approved drugs has a lower answer, for every label;"
            " `alerts` the structural alerts, in CSV their names; both also with a comma between"
            " them"
        ),
    ),
]
_JobId = Annotated[str, Path(max_length=64)]


def _query(
    services: Services,
    model: str | None,
    tasks: list[str] | None,
    routing: Routing,
    experts: list[str] | None,
) -> PredictionQuery:
    tasks = _names(tasks)
    if tasks is not None and len(set(tasks)) != len(tasks):
        raise ProblemError(422, "invalid_request", "got a task twice in tasks, expected each once")
    names = _names(experts)
    try:
        choice = None if names is None else expert_choice(names)
    except InvalidInputError as error:
        raise ProblemError(422, "invalid_request", str(error)) from None
    return services.models.query(model, tasks, routing, choice)


def _row_explanations(explain: list[str] | None) -> tuple[RowExplanation, ...]:
    try:
        return row_explanations(_names(explain) or ())
    except InvalidInputError as error:
        raise ProblemError(422, "invalid_request", str(error)) from None


def _names(values: list[str] | None) -> list[str] | None:
    """Split the values of a parameter at commas, which no name has."""
    if values is None:
        return None
    return [name.strip() for value in values for name in value.split(",")]


_TEXT = {"schema": {"type": "string"}}
_FILE_ANSWER: dict[str, Any] = {
    "content": {media.partition(";")[0]: _TEXT for media in MEDIA_TYPES.values()},
    "description": "A row for every record of the file, in order",
}
_STREAM_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/x-ndjson": {
                "schema": {
                    "type": "string",
                    "description": (
                        "one molecule or graph a line: a SMILES as a JSON string, or an object"
                        " (schema StreamLine)"
                    ),
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
        200: {
            "content": {"application/x-ndjson": _TEXT},
            "description": "A line for every line, in order",
        },
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
    experts: _Experts = None,
    explain: _ExplainRows = None,
    explain_routing: _Explain = False,
    explain_experts: _ExplainExperts = False,
) -> Response:
    """Predict for lines of NDJSON, and answer in NDJSON while lines still arrive.

    Read the answers while you write, or both sides wait for each other.

    Every line of the answer has the form of an item of `/predict`, with the `id` of its line if
    there was one. A line that cannot be read gets an `error`. A stream that the service ends early
    ends with a line that has only an `error`, which says how many lines were answered.
    """
    query = _query(services, model, tasks, routing, experts)
    body = Body(request.receive)
    groups = ndjson_groups(body.chunks(), services.settings.max_body_bytes)
    shown = {"routing": explain_routing, "experts": explain_experts}
    explained = explained_rows(query, _row_explanations(explain))
    lines = ndjson_answers(
        groups,
        Answerer(services.pipeline, query, services.keys, client, explained),
        [name for name, wanted in shown.items() if wanted],
        body.disconnected,
    )
    return StreamedResponse(
        lines, "application/x-ndjson", model_headers(query), services.streams, body.close
    )


_Format = Annotated[FileKind | None, Query(description="of the file; by its name if left out")]
_Column = Annotated[
    str | None,
    Query(
        max_length=256,
        description="column of the molecules in a table; by name and content if left out",
    ),
]
_IdField = Annotated[
    str | None,
    Query(max_length=256, description="column, or data field of an SDF, of the records' ids"),
]
_Output = Annotated[
    OutputKind,
    Query(
        description=(
            "`csv`: the file's own columns, then ours; `ndjson`: as of `/predict`; `sdf`: the"
            " molecules, with both as data fields"
        )
    ),
]
_Escape = Annotated[
    bool,
    Query(
        description=(
            "of CSV: write an apostrophe before text that a spreadsheet would run as a formula"
        )
    ),
]
_Prefer = Annotated[str, Header(description="`respond-async` makes a job of a short file too")]
_LONGEST_NAME = 256
_AS_QUERY = "as the parameter of this name; not both"
_LISTS = ("tasks", "experts", "explain")


@dataclass(frozen=True)
class _FormFields:
    """Options of `/predict/file` that were sent as fields of the form; None if not given there."""

    format: FileKind | None
    smiles_column: str | None
    id_field: str | None
    output: OutputKind | None
    model: str | None
    tasks: list[str] | None
    routing: Routing | None
    experts: list[str] | None
    explain: list[str] | None
    escape_formulas: bool | None


async def _form_fields(
    request: Request,
    format: Annotated[FileKind | None, Form(description=_AS_QUERY)] = None,  # noqa: A002
    smiles_column: Annotated[str | None, Form(max_length=256, description=_AS_QUERY)] = None,
    id_field: Annotated[str | None, Form(max_length=256, description=_AS_QUERY)] = None,
    output: Annotated[OutputKind | None, Form(description=_AS_QUERY)] = None,
    model: Annotated[str | None, Form(max_length=128, description=_AS_QUERY)] = None,
    tasks: Annotated[list[str] | None, Form(max_length=1000, description=_AS_QUERY)] = None,
    routing: Annotated[Routing | None, Form(description=_AS_QUERY)] = None,
    experts: Annotated[list[str] | None, Form(max_length=2, description=_AS_QUERY)] = None,
    explain: Annotated[list[str] | None, Form(max_length=10, description=_AS_QUERY)] = None,
    escape_formulas: Annotated[bool | None, Form(description=_AS_QUERY)] = None,
) -> _FormFields:
    """Read the options in the form, as `curl -F` sends them, and refuse any other field."""
    known = {"file", *(field.name for field in fields(_FormFields))}
    given = (await request.form()).multi_items()
    names = [name for name, _ in given]
    for name, value in given:
        if name not in known:
            detail = f"got an unknown field, expected some of {', '.join(sorted(known))}"
            raise _bad_field(name, f"{detail}{did_you_mean(name, known)}")
        if name in request.query_params:
            raise _bad_field(name, "got it in the form and in the query, expected it once")
        if (count := names.count(name)) > 1 and name not in _LISTS:
            got = f"got {count} files" if name == "file" else f"got it {count} times"
            raise _bad_field(name, f"{got}, expected one")
        if name == "file" and isinstance(value, str):
            raise _bad_field(name, "got a field of text, expected a file, with its name")
        if value == "":
            raise _bad_field(name, "got an empty field, expected a value")
    columns = (format, smiles_column, id_field, output)
    return _FormFields(*columns, model, tasks, routing, experts, explain, escape_formulas)


def _bad_field(name: str, detail: str) -> ProblemError:
    pointer = printable(f"#/{name[:64]}")
    errors = [{"pointer": pointer, "detail": detail}]
    return ProblemError(422, "invalid_request", f"{pointer}: {detail}", errors=errors)


@router.post(
    "/predict/file",
    tags=["predictions"],
    summary="Predict for a file: CSV, TSV, SMI, CXSMILES or SDF, plain or gzip",
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
    form: Annotated[_FormFields, Depends(_form_fields)],
    file: Annotated[UploadFile, File(description="the file, one")],
    format: _Format = None,  # noqa: A002 - its name over the wire
    smiles_column: _Column = None,
    id_field: _IdField = None,
    output: _Output = "csv",
    model: _Model = None,
    tasks: _Tasks = None,
    routing: _Routing = DEFAULT_ROUTING,
    experts: _Experts = None,
    explain: _ExplainRows = None,
    escape_formulas: _Escape = False,
    prefer: _Prefer = "",
) -> Response:
    """Predict for every record of a file; a long file becomes a job, where jobs are kept.

    A record that cannot be read gets an error in its row.

    A table has a header. The service detects its delimiter (comma, semicolon, tab, `|`, or what a
    line `sep=` says), its encoding (UTF-8, UTF-16, else Windows-1252) and the column of the
    molecules (SMILES, CXSMILES, InChI or mol blocks). The headers `X-File-Encoding` and
    `X-Smiles-Column` (percent-encoded) say which. A short row is padded; a blank line is no record,
    a quoted empty cell is one. Lines of SMILES may have a CXSMILES extension, a name, and a first
    line of names. Data fields of an SDF come back as columns. The file may be compressed with gzip.

    Options may be sent as fields of the form instead.
    """
    options = (form.model or model, form.tasks or tasks, form.routing or routing)
    query = _query(services, *options, form.experts or experts)
    query.engine.info.check_table(query.tasks)
    asked = _row_explanations(form.explain or explain)
    explained = explained_rows(query, asked)
    output = form.output or output
    escape = bool(form.escape_formulas or escape_formulas)
    if escape and output != "csv":
        got = f"got escape_formulas for output {output!r}, which has no cells"
        raise ProblemError(422, "invalid_request", f"{got}, expected it for 'csv'")
    limit = services.settings.max_file_bytes
    try:
        kind = form.format or format or kind_of(file.filename or "")
        columns = (form.smiles_column or smiles_column, form.id_field or id_field)
        file_format = FileFormat(kind, *columns)
        # Replaces the upload, so that it is closed with the form.
        file.file = content = await asyncio.to_thread(decompressed, file.file, limit)
        opened = await asyncio.to_thread(open_file, content, file_format)
    except InvalidInputError as error:
        raise ProblemError(422, "invalid_file", str(error)) from None
    except FileTooLargeError:
        raise too_large("max_file_bytes", limit) from None
    is_long = _size(content) > services.settings.direct_file_bytes
    if services.jobs is not None and (is_long or "respond-async" in prefer.lower()):
        file_format = replace(file_format, smiles_column=opened.smiles_column)
        values = (content, _client_name(client), file_format, query, output, opened.encoding)
        job = await asyncio.to_thread(services.jobs.create, *values, asked, escape)
        headers = {"Location": f"/jobs/{job.id}"}
        return Response(_job_out(job).model_dump_json(), 202, headers, "application/json")
    body = Body(request.receive)  # already read: it only reports a disconnect
    answerer = Answerer(services.pipeline, query, services.keys, client, explained, output == "sdf")
    written = opened, answerer.query.engine.info, query.tasks, explained
    writer = row_writer(output, *written, escape)
    rows = _answer_file(writer, answerer, body.disconnected)
    headers = {**model_headers(query), **_file_headers(opened.encoding, opened.smiles_column)}
    return StreamedResponse(rows, MEDIA_TYPES[output], headers, services.streams, body.close)


def _file_headers(encoding: str | None, smiles_column: str | None) -> dict[str, str]:
    """Return the headers that say how a file was read."""
    headers = {} if encoding is None else {"X-File-Encoding": encoding}
    if smiles_column is not None:
        headers["X-Smiles-Column"] = quote(smiles_column[:_LONGEST_NAME])
    return headers


async def _answer_file(
    writer: RowWriter, answerer: Answerer, disconnected: asyncio.Future[None]
) -> AsyncGenerator[bytes, None]:
    yield writer.header()
    groups = file_groups(writer.file)
    async with contextlib.aclosing(in_order(groups, answerer, disconnected)) as answers:
        async for answered in answers:
            yield writer.rows(answered)


@router.get(
    "/jobs", tags=["jobs"], summary="Your jobs, the newest first", responses=problems(401, 503)
)
async def list_jobs(services: ServicesDep, client: ClientDep) -> JobsResponse:
    """List the jobs of the client's key; without keys, all jobs."""
    if services.jobs is None:
        return JobsResponse(jobs=[])
    jobs = await asyncio.to_thread(services.jobs.of_client, _client_name(client))
    return JobsResponse(jobs=[_job_out(job) for job in jobs])


@router.get(
    "/jobs/{job_id}",
    tags=["jobs"],
    summary="How a job stands",
    responses=problems(401, 404, 422, 503),
)
async def get_job(job_id: _JobId, services: ServicesDep, client: ClientDep) -> JobOut:
    """Return the state and progress of a job."""
    return _job_out((await _job(job_id, services, client))[1])


@router.get(
    "/jobs/{job_id}/result",
    tags=["jobs"],
    summary="What a job answered",
    response_class=Response,
    responses={200: _FILE_ANSWER, **problems(401, 404, 409, 422, 503)},
)
async def get_result(job_id: _JobId, services: ServicesDep, client: ClientDep) -> Response:
    """Download the answers of a job that is done."""
    store, job = await _job(job_id, services, client)
    if job.state != "done":
        reason = f": {job.error}" if job.error else ""
        raise ProblemError(409, "job_not_done", f"the job is {job.state}, expected done{reason}")
    headers = {"X-Model-Digest": job.digest, **_file_headers(job.encoding, job.smiles_column)}
    return FileResponse(
        store.result_path(job),
        headers=headers,
        media_type=MEDIA_TYPES[job.output],
        filename=f"{job.id}.{job.output}",
    )


@router.delete(
    "/jobs/{job_id}",
    tags=["jobs"],
    summary="Stop a job, or forget one that is over",
    responses=problems(401, 404, 422, 503),
)
async def delete_job(job_id: _JobId, services: ServicesDep, client: ClientDep) -> JobOut:
    """Stop a job, or delete one that has ended; its files are deleted at once."""
    store, job = await _job(job_id, services, client)
    stopped = await asyncio.to_thread(store.cancel, job)
    return _job_out(job, "cancelled" if stopped else None)


async def _job(job_id: str, services: Services, client: Client | None) -> tuple[JobStore, Job]:
    if services.jobs is not None:
        job = await asyncio.to_thread(services.jobs.get, job_id, _client_name(client))
        if job is not None:
            return services.jobs, job
    detail = "there is no such job, or it is another client's, or its time was over"
    raise ProblemError(404, "unknown_job", detail)


def _size(content: BinaryIO) -> int:
    position = content.tell()
    size = content.seek(0, os.SEEK_END)
    content.seek(position)
    return size


def _client_name(client: Client | None) -> str:
    return "" if client is None else client.name


def _job_out(job: Job, state: JobState | None = None) -> JobOut:
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
        encoding=job.encoding,
        smiles_column=job.smiles_column,
        error=job.error or None,
    )
