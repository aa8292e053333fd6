import asyncio
import hashlib
import json
import os
import re
import time
from pathlib import Path

import httpx
import pytest

from models.errors import ConfigError
from service.rates import Rates
from service.security import Client, KeyRing, RateLimitedError, new_key
from tests.service.doubles import serving

LAB, ADMIN = "lab-key", "admin-key"


def entry(name: str, key: str, **values: object) -> dict[str, object]:
    return {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest(), **values}


KEYS = json.dumps([entry("lab", LAB, molecules_per_minute=10), entry("boss", ADMIN, admin=True)])


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_keys_open_and_nothing_else_does() -> None:
    ring = KeyRing(KEYS)
    assert not ring.is_empty
    assert [
        client.name if (client := ring.client_of(key)) else None
        for key in (LAB, ADMIN, "", "lab", LAB + " ", "\ud800")
    ] == [
        "lab",
        "boss",
        None,
        None,
        None,
        None,
    ]
    assert KeyRing().is_empty


def test_new_key_opens() -> None:
    key, client = new_key("x")
    assert KeyRing(json.dumps([client.model_dump()])).client_of(key) == client
    assert key not in client.model_dump_json()
    assert new_key("x")[0] != key


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "{}",
        '[{"name": "a"}]',
        '[{"name": "a b", "sha256": "' + "0" * 64 + '"}]',
        json.dumps([entry("a", "1"), entry("a", "2")]),
    ],
)
def test_wrong_keys_are_named_but_not_shown(text: str) -> None:
    with pytest.raises(ConfigError, match="GMERGING_API_KEYS") as error:
        KeyRing(text)
    assert "0000" not in str(error.value)


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="API_KEYS_FILE"):
        KeyRing(file=tmp_path / "nothing.json")


def test_file_is_read_again_and_a_slip_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps([entry("a", "1")]))
    ring = KeyRing(file=file)
    now = [time.monotonic()]
    monkeypatch.setattr("service.security.time.monotonic", lambda: now[0])
    for content, opens in (
        (json.dumps([entry("b", "2")]), "2"),
        ("[oops", "2"),
        (json.dumps([]), ""),
    ):
        file.write_text(content)
        os.utime(file, ns=(int(now[0]) * 10**9, int(now[0]) * 10**9))
        now[0] += 10
        assert [key for key in "123" if ring.client_of(key)] == list(opens)
    assert not ring.is_empty  # a file without keys lets nobody in


def test_rate_counts_molecules_and_says_when_to_come_back() -> None:
    ring = KeyRing(KEYS)
    lab, boss = ring.client_of(LAB), ring.client_of(ADMIN)
    ring.spend(lab, 4)
    ring.spend(lab, 6)
    with pytest.raises(RateLimitedError, match="lab may ask for 10 molecules a minute") as error:
        ring.spend(lab, 1)
    assert 1 <= error.value.retry_after_seconds <= 120
    ring.spend(boss, 10**6)
    ring.spend(None, 10**6)


def test_rate_holds_over_all_workers(tmp_path: Path) -> None:
    first, second = [KeyRing(KEYS, rates=Rates(tmp_path / "rates.json")) for _ in range(2)]
    first.spend(first.client_of(LAB), 5)
    second.spend(second.client_of(LAB), 5)
    for ring in (first, second):
        with pytest.raises(RateLimitedError):
            ring.spend(ring.client_of(LAB), 1)


def test_more_than_a_minutes_worth_is_let_in_once() -> None:
    ring = KeyRing(KEYS)
    ring.spend(ring.client_of(LAB), 1000)
    with pytest.raises(RateLimitedError):
        ring.spend(ring.client_of(LAB), 1)


def test_streams_wait_for_their_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = KeyRing(KEYS)
    lab = ring.client_of(LAB)
    waits = iter([3, 1, 0])
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(ring, "_spend", lambda *_: next(waits))
    monkeypatch.setattr(asyncio, "sleep", sleep)
    asyncio.run(ring.wait(lab, 5))
    assert slept == [1, 1]


# --- over HTTP ---


@pytest.mark.anyio
async def test_who_may_do_what() -> None:
    expected = {
        "/healthz": (200, 200, 200, 200),
        "/readyz": (200, 200, 200, 200),
        "/metrics": (200, 200, 200, 200),
        "/openapi.json": (200, 200, 200, 200),
        "/docs": (200, 200, 200, 200),
        "/docs/start.js": (200, 200, 200, 200),
        "/v2/health/ready": (200, 200, 200, 200),
        "/tasks": (401, 401, 200, 200),
        "/v2": (401, 401, 200, 200),
        "/jobs": (401, 401, 200, 200),
        "/nothing": (401, 401, 404, 404),
        "/admin/models": (401, 401, 403, 200),
    }
    async with serving(api_keys=KEYS) as client:
        for path, statuses in expected.items():
            headers: tuple[dict[str, str], ...] = (
                {},
                bearer("wrong"),
                bearer(LAB),
                {"x-api-key": ADMIN},
            )
            assert (
                tuple([(await client.get(path, headers=each)).status_code for each in headers])
                == statuses
            ), path
        refused = await client.post("/predict", json={"smiles": "C"})
        assert (
            refused.status_code,
            refused.json()["code"],
            refused.headers["www-authenticate"],
        ) == (401, "unauthorized", "Bearer")
        assert (await client.get("/v2")).json()["error"]
        assert (
            await client.post("/predict", json={"smiles": "C"}, headers=bearer(LAB))
        ).status_code == 200


@pytest.mark.anyio
async def test_refusals_are_counted_under_their_route() -> None:
    def counted(text: str) -> dict[tuple[str, str], float]:
        found = re.findall(
            r'gmerging_requests_total{method="\w+",route="([^"]*)",status="(4\d\d)"} (\S+)', text
        )
        return {(route, status): float(value) for route, status, value in found}

    async with serving(api_keys=KEYS, max_body_bytes=1024) as client:
        await client.post("/predict", json={"smiles": "C"})
        await client.get("/jobs/a1", headers=bearer("wrong"))
        await client.post("/v2/models/dummy/versions/1/infer", json={})
        await client.get("/admin/models", headers=bearer(LAB))
        await client.get("/admin/nothing", headers=bearer(LAB))
        await client.get("/nothing/at/all")
        await client.post(
            "/predict",
            content=b" " * 2000,
            headers={**bearer(LAB), "content-type": "application/json"},
        )
        await client.post(
            "/predict", content=b"x", headers={**bearer(LAB), "content-encoding": "br"}
        )
        for _ in range(2):
            await client.post("/predict", json={"smiles": ["C"] * 10}, headers=bearer(LAB))
        await client.get("/predict", headers=bearer(LAB))
        text = (await client.get("/metrics")).text
    assert counted(text) == {
        ("/predict", "401"): 1,
        ("/jobs/{job_id}", "401"): 1,
        ("/v2/models/{name}/versions/{version}/infer", "401"): 1,
        ("/admin/models", "403"): 1,
        ("unmatched", "403"): 1,
        ("unmatched", "401"): 1,
        ("/predict", "413"): 1,
        ("/predict", "415"): 1,
        ("/predict", "429"): 1,
        ("/predict", "405"): 1,
    }


@pytest.mark.anyio
async def test_without_keys_predictions_are_open_and_admin_is_closed() -> None:
    async with serving() as client:
        assert (await client.post("/predict", json={"smiles": "C"})).status_code == 200
        response = await client.post(
            "/admin/models/dummy", json={"action": "reload"}, headers=bearer("x")
        )
    assert (response.status_code, response.json()["code"]) == (403, "admin_disabled")


@pytest.mark.anyio
async def test_rate_limit_is_a_429() -> None:
    async with serving(api_keys=KEYS) as client:

        async def ask(count: int) -> httpx.Response:
            return await client.post(
                "/predict", json={"smiles": ["C"] * count}, headers=bearer(LAB)
            )

        assert [(await ask(count)).status_code for count in (7, 3, 1)] == [200, 200, 429]
        refused = await ask(1)
    assert refused.json()["code"] == "rate_limited"
    assert int(refused.headers["retry-after"]) >= 1


@pytest.mark.anyio
async def test_headers_and_no_cors_unless_asked_for() -> None:
    origin = {"origin": "https://lab.example", "access-control-request-method": "POST"}
    async with serving() as client:
        response = await client.get("/healthz", headers=origin)
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
        assert response.headers["content-security-policy"].startswith("default-src 'none'")
        assert (
            "script-src 'self';" in (await client.get("/docs")).headers["content-security-policy"]
        )
        assert not [name for name in response.headers if name.startswith("access-control")]
    async with serving(
        cors_origins="https://lab.example, https://other.example", api_keys=KEYS
    ) as client:
        # browsers send it without a key
        preflight = await client.options("/predict", headers=origin)
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (
            200,
            "https://lab.example",
        )
        deletion = await client.options(
            "/jobs/1", headers={**origin, "access-control-request-method": "DELETE"}
        )
        assert deletion.status_code == 200
        answer = await client.get("/healthz", headers=origin)
        assert answer.headers["access-control-expose-headers"] == "*"  # X-Model-*, Location
        stranger = await client.options(
            "/predict", headers={**origin, "origin": "https://evil.example"}
        )
        assert "access-control-allow-origin" not in stranger.headers


def test_client_is_strict() -> None:
    with pytest.raises(ValueError, match="extra"):
        Client.model_validate({**entry("a", "1"), "admn": True})
