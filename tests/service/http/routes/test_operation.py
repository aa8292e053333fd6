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
            assert response.headers["retry-after"]


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
