"""The service's own OpenAPI document, tried out: whatever it lets a client send gets one of the
answers that it names, in the form that it names."""

import hashlib
import http.client
import json
import os
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, assume, settings
from schemathesis.checks import CheckContext, CheckFunction
from schemathesis.config import GenerationConfig, ProjectConfig, ProjectsConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.app import create_app
from tests.service import doubles
from tests.service.doubles import DummyEngine, settings_of

KEY = "the key of an admin"
KEYS = json.dumps(
    [{"name": "admin", "sha256": hashlib.sha256(KEY.encode()).hexdigest(), "admin": True}]
)
REFUSALS = {503, 504}
"""The only answers from 500 on that say nothing bad of the service."""

# Without generated keys: every request has the admin's, so that it gets as far as it can.
_GENERATION = GenerationConfig(deterministic=True, with_security_parameters=False)
_CONFIG = schemathesis.Config(
    seed=1, projects=ProjectsConfig(default=ProjectConfig(generation=_GENERATION))
)
# before any fixture runs, and operations are tests: so once more, no setting of the machine
with pytest.MonkeyPatch.context() as _patch:
    for _name in [name for name in os.environ if name.startswith("GMERGING_")]:
        _patch.delenv(_name)
    DOCUMENT: dict[str, Any] = create_app(settings_of(), DummyEngine()).openapi()
API = schemathesis.openapi.from_dict(DOCUMENT, config=_CONFIG)


@schemathesis.serializer("application/x-ndjson")
def _lines(_: schemathesis.SerializationContext, value: Any) -> bytes:
    return (value if isinstance(value, str) else json.dumps(value)).encode("utf-8", "replace")


def no_failure(_: CheckContext, response: schemathesis.Response, __: schemathesis.Case) -> None:
    assert response.status_code < 500 or response.status_code in REFUSALS, response.content[:400]


CHECKS: list[CheckFunction] = [
    no_failure,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


LONGEST_ADDRESS = 60_000
"""The HTTP parser refuses requests whose first line is longer than 64 KiB: the application, whose
document this is, never sees them."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a running service; with a real server, so that what HTTP itself does to a request is in
    the picture. Its engine takes every element."""
    app = create_app(
        settings_of(api_keys=KEYS, jobs=tmp_path_factory.mktemp("jobs")), DummyEngine()
    )
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="on"))
    thread = threading.Thread(target=server.run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doubles, "POISON", -1)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        yield f"http://{host}:{port}"
        server.should_exit = True
        thread.join()


def aim(case: schemathesis.Case, url: str) -> None:
    """Put the model that is there in place of every other name, and a new job in place of every
    other id: random ones are refused at once."""
    for values, name in (
        (case.path_parameters, "name"),
        (case.query, "model"),
        (case.body, "model"),
    ):
        if isinstance(values, dict) and _is_replaced(values.get(name)):
            values[name] = "dummy"
    if _is_replaced(case.path_parameters.get("job_id")):
        files = {"file": ("a.smi", b"CCO\nC1\n")}
        answer = httpx.post(
            f"{url}/predict/file",
            files=files,
            headers={"X-API-Key": KEY, "Prefer": "respond-async"},
            timeout=60,
        )
        case.path_parameters["job_id"] = answer.json()["id"]


def _is_replaced(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 64 and len(value) % 2 == 1


@API.parametrize()
@settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
def test_answers_are_as_documented(case: schemathesis.Case, url: str) -> None:
    aim(case, url)
    assume(len(urlencode(case.query or {}, doseq=True)) < LONGEST_ADDRESS)
    case.call_and_validate(base_url=url, headers={"X-API-Key": KEY}, checks=CHECKS, timeout=60)


def test_address_that_is_too_long_is_refused_and_hinders_nobody(url: str) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    connection.request("GET", f"/tasks?{'x' * 2 * LONGEST_ADDRESS}")
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (400, b"Invalid HTTP request received.")
    connection.close()
    assert httpx.get(f"{url}/tasks", headers={"X-API-Key": KEY}, timeout=60).status_code == 200


def test_document_says_what_each_operation_is_and_who_may() -> None:
    for path, operations in DOCUMENT["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            assert operation["tags"], (method, path)
            assert operation["responses"].keys() & {"200", "202"}, (method, path)
            if "security" in operation:
                assert "401" in operation["responses"], (method, path)
