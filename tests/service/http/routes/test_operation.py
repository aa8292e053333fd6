"""Probes and metrics."""

import pytest

from service.app import create_app
from tests.service.doubles import (
    DummyEngine,
    check_problem,
    client_of,
    metric,
    serving,
    settings_of,
)

pytestmark = pytest.mark.anyio


async def test_before_the_start_only_health_answers() -> None:
    app = create_app(settings_of(), DummyEngine())
    async with client_of(app) as client:
        assert (await client.get("/healthz")).json() == {"status": "alive"}
        for method, path in (
            ("GET", "/readyz"),
            ("GET", "/tasks"),
            ("GET", "/model"),
            ("POST", "/predict"),
        ):
            response = await client.request(
                method, path, json={"smiles": "C"} if method == "POST" else None
            )
            check_problem(response, 503, "not_ready")
            assert response.headers["retry-after"] == "1"


async def test_metrics_move() -> None:
    async with serving() as client:
        await client.post("/predict", json={"smiles": ["C", "C1"]})
        await client.get("/some/thing")
        response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    assert (
        metric(
            response.text, 'gmerging_requests_total{method="POST",route="/predict",status="200"}'
        )
        == 1
    )
    assert (
        metric(
            response.text, 'gmerging_requests_total{method="GET",route="unmatched",status="404"}'
        )
        == 1
    )
    assert metric(response.text, 'gmerging_molecules_total{outcome="ok"}') == 1
    assert metric(response.text, 'gmerging_molecules_total{outcome="smiles_syntax"}') == 1
    for stage in ("parse", "queue", "model", "serialise"):
        assert (
            metric(response.text, f'gmerging_stage_duration_seconds_count{{stage="{stage}"}}') == 1
        )
    assert metric(response.text, "gmerging_ready") == 1


PROBES = {
    "/healthz": {"status": "alive"},
    "/readyz": {"status": "ready"},
    "/v2/health/live": {"live": True},
    "/v2/health/ready": {"ready": True},
}


async def test_probes_of_a_running_service() -> None:
    async with serving() as client:
        answers = {path: await client.get(path) for path in PROBES}
    assert {path: answer.json() for path, answer in answers.items()} == PROBES
    assert {answer.status_code for answer in answers.values()} == {200}


async def test_service_that_drains_is_alive_and_not_ready_and_answers() -> None:
    app = create_app(settings_of(), DummyEngine())
    async with app.router.lifespan_context(app), client_of(app) as client:
        app.state.services.pipeline.drain()
        statuses = {path: (await client.get(path)).status_code for path in PROBES}
        answer = await client.post("/predict", json={"smiles": "C", "tasks": ["bbbp"]})
        ready = metric((await client.get("/metrics")).text, "gmerging_ready")
    assert statuses == {
        **{"/healthz": 200, "/readyz": 503},
        **{"/v2/health/live": 200, "/v2/health/ready": 503},
    }
    assert answer.json()["predictions"][0]["tasks"] == {"bbbp": {"p_np": 0.5}}
    assert ready == 0
