import multiprocessing
import time
from pathlib import Path

import pytest

from service.rates import Rates


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock, which begins a minute."""
    clock = [6000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    return clock


@pytest.mark.parametrize("shared", [False, True])
def test_wait_is_as_long_as_it_must_be(shared: bool, now: list[float], tmp_path: Path) -> None:
    rates = Rates(tmp_path / "rates.json" if shared else None)
    assert rates.spend("a", 6, 10) == 0
    assert rates.spend("a", 4, 10) == 0
    assert rates.spend("b", 10, 10) == 0  # each by itself
    for molecules, wait in ((1, 66), (5, 90), (10, 120)):
        now[0] = 6000.0
        assert rates.spend("a", molecules, 10) == wait
        now[0] += wait - 1
        assert rates.spend("a", molecules, 10) == 1
    now[0] += 1
    assert rates.spend("a", 10, 10) == 0


def test_minute_of_silence_forgets(now: list[float]) -> None:
    rates = Rates()
    assert rates.spend("a", 10, 10) == 0
    now[0] += 179
    assert rates.spend("a", 10, 10) == 0


def test_never_more_than_twice_in_any_minute(now: list[float]) -> None:
    rates, spent = Rates(), []
    for _ in range(600):
        now[0] += 1
        if rates.spend("a", 3, 30) == 0:
            spent.append(now[0])
    for moment in spent:
        assert sum(3 for other in spent if moment - 60 < other <= moment) <= 60
    assert 250 <= 3 * len(spent) <= 330  # in ten minutes


def _spend(file: Path) -> int:
    rates = Rates(file)
    return sum(rates.spend("a", 1, 100) == 0 for _ in range(100))


def test_processes_share_a_rate(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert sum(pool.map(_spend, [tmp_path / "rates.json"] * 2)) == 100


def test_file_of_a_process_that_died_while_it_wrote(tmp_path: Path) -> None:
    file = tmp_path / "rates.json"
    file.write_bytes(b"")
    assert Rates(file).spend("a", 1, 1) == 0
