import asyncio
import hashlib
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from models.errors import ConfigError
from service.rates import Rates
from service.security import Client, KeyRing, RateLimitedError, new_key

LAB, ADMIN = "lab-key", "admin-key"


def entry(name: str, key: str, **values: object) -> dict[str, object]:
    return {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest(), **values}


KEYS = json.dumps([entry("lab", LAB, molecules_per_minute=10), entry("boss", ADMIN, admin=True)])


def test_keys_open_and_nothing_else_does() -> None:
    ring = KeyRing(KEYS)
    assert not ring.is_empty
    assert [
        client.name if (client := ring.client_of(key)) else None
        for key in (LAB, ADMIN, "", "lab", LAB + " ", "\ud800")
    ] == ["lab", "boss", None, None, None, None]
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


def test_rate_counts_molecules_and_says_when_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.rates.time", SimpleNamespace(monotonic=lambda: 6000.0))
    ring = KeyRing(KEYS)
    lab, boss = ring.client_of(LAB), ring.client_of(ADMIN)
    ring.spend(lab, 4)
    ring.spend(lab, 6)
    with pytest.raises(RateLimitedError, match="lab may ask for 10 molecules a minute") as error:
        ring.spend(lab, 1)
    assert error.value.retry_after_seconds == 66
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


def test_client_is_strict() -> None:
    with pytest.raises(ValueError, match="extra"):
        Client.model_validate({**entry("a", "1"), "admn": True})
