"""What the routes share: options in the address, of which none is ignored, and deadlines."""

import time
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import Request

from service.app import create_app
from service.http.routes import common
from service.schemas import Problem
from tests.service.doubles import DummyEngine, serving, settings_of

pytestmark = pytest.mark.anyio

PROBES = {"/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"}
DOCUMENT: dict[str, Any] = create_app(settings_of(), DummyEngine()).openapi()
OPERATIONS = [
    (method.upper(), path)
    for path, operations in DOCUMENT["paths"].items()
    for method in operations
]
PATHS = {"name": "dummy", "version": "1", "job_id": "x"}


async def ask(client: httpx.AsyncClient, method: str, path: str, query: str) -> httpx.Response:
    """With a body that can be read: FastAPI reads it first."""
    body: dict[str, Any] = {}
    if path == "/predict":
        body = {"json": {"smiles": "C"}}
    elif path == "/predict/file":
        body = {"files": {"file": ("a.smi", b"C\n")}}
    elif path.startswith("/admin/models/"):
        body = {"json": {"action": "reload"}}
    return await client.request(
        method, f"{path.format(**PATHS)}?{query}", headers={"x-api-key": "k"}, **body
    )


KEYS = (
    '[{"name": "k", "sha256": "8254c329a92850f6d539dd376f4816ee2764517da5e0235514af433164480d7a",'
    ' "admin": true}]'
)


@pytest.mark.parametrize(
    ("method", "path"), [*OPERATIONS, ("GET", "/"), ("GET", "/docs"), ("GET", "/openapi.json")]
)
async def test_unknown_parameter_is_refused_on_every_route_but_probes(
    method: str, path: str
) -> None:
    async with serving(api_keys=KEYS) as client:
        response = await ask(client, method, path, "nonsense=1")
    if path in PROBES:
        # load balancers add some of their own, to pass by caches
        assert response.status_code == 200
        return
    assert response.status_code == 422
    body = response.json()
    assert (body["code"], body["errors"][0]["pointer"]) == ("invalid_request", "query nonsense")
    assert "got an unknown parameter 'nonsense', expected " in body["detail"]


@pytest.mark.parametrize("path", ["/predict/stream", "/predict/file"])
@pytest.mark.parametrize(
    ("query", "said"),
    [
        (
            "task=bbbp",
            (
                "query task: got an unknown parameter 'task', expected one of .*tasks.*, did you"
                " mean 'tasks'?"
            ),
        ),
        ("tasks=bbbp&rooting=own", "did you mean 'routing'?"),
        ("routing=own&routing=moe", "query routing: got it 2 times, expected it once"),
        ("Tasks=bbbp", "did you mean 'tasks'?"),
        ("%ff%00=1", "expected one of"),
    ],
)
async def test_slip_of_a_name(path: str, query: str, said: str) -> None:
    async with serving() as client:
        response = await ask(client, "POST", path, query)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    for text in said.split(".*"):
        assert text in response.json()["detail"]


async def test_first_wrong_one_of_a_route_that_takes_none() -> None:
    async with serving() as client:
        response = await client.post("/predict?tasks=bbbp", json={"smiles": "C"})
    assert (
        response.json()["detail"] == "query tasks: got an unknown parameter 'tasks', expected none"
    )


@pytest.mark.parametrize(
    "query", ["tasks=tox21,bbbp", "tasks=tox21&tasks=bbbp", "tasks=tox21,%20bbbp"]
)
async def test_tasks_may_be_written_in_one(query: str) -> None:
    async with serving() as client:
        response = await client.post(f"/predict/stream?{query}", content=b'"C"\n')
        assert list(response.json()["tasks"]) == ["bbbp", "tox21"]
        table = await client.post(f"/predict/file?{query}", files={"file": ("a.smi", b"C\n")})
    assert "bbbp" in table.text
    assert "clintox" not in table.text


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("tasks=bbbp,bbbp", "invalid_request"),
        ("tasks=bbbp,", "unknown_task"),
        ("tasks=", "unknown_task"),
    ],
)
async def test_wrong_tasks(query: str, code: str) -> None:
    async with serving() as client:
        response = await client.post(f"/predict/stream?{query}", content=b'"C"\n')
    assert (response.status_code, response.json()["code"]) == (422, code)


@pytest.mark.parametrize(
    ("timeout", "expected"), [(None, 28.0), (10.0, 8.0), (100.0, 28.0), (1.0, -1.0)]
)
def test_deadline_counts_from_the_arrival(
    timeout: float | None, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: 102.0)
    request = Request({"type": "http", "arrived": 100.0})
    services = SimpleNamespace(settings=settings_of(request_timeout_seconds=30))
    assert common.seconds_left(request, services, timeout) == expected  # type: ignore[arg-type]


def test_problems_are_documented_with_their_reasons() -> None:
    documented = common.problems(401, 429)
    assert list(documented) == [401, 429]
    assert documented[401] == {"model": Problem, "description": "The key is missing or unknown"}
    with pytest.raises(KeyError):
        common.problems(418)  # a status that no route answers has no description
