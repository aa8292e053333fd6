"""Leases: one owner at a time; whoever has died, or shows no sign of life, is followed by one."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from merging.data import lease
from merging.data.lease import Claim, Lease, Watch, made_once, pauses_of_waiting, take


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "thing"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock by which other owners are watched: its last entry is the time."""
    times = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: times[-1])
    return times


def names(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir())


def of_another_machine(path: Path, generation: int = 1) -> Path:
    """Write the lease of a process on another machine."""
    file = path.with_name(f"{path.name}.lease.{generation}")
    owner = {"token": "abc", "host": "node3", "pid": 12, "kernel": "another"}
    file.write_text(json.dumps(owner))
    return file


def watched_until_stale(watch: Watch, path: Path, clock: list[float]) -> Claim | None:
    """Look every two seconds until the lease has ended; return it."""
    for _ in range(1000):
        claim, held = watch.look(path)
        if not held:
            return claim
        clock.append(clock[-1] + 2)
    raise AssertionError("held for ever")


def test_of_many_that_want_it_one_gets_it_and_gives_it_back(path: Path) -> None:
    barrier = threading.Barrier(8, timeout=20)

    def attempt(_: int) -> Lease | None:
        barrier.wait()
        return take(path, None)

    with ThreadPoolExecutor(8) as pool:
        taken = [found for found in pool.map(attempt, range(8)) if found]
    assert len(taken) == 1
    claim, held = Watch().look(path)
    assert held
    assert claim is not None
    assert claim.generation == 1
    with taken[0]:
        assert take(path, None) is None
    assert names(path) == []
    assert Watch().look(path) == (None, False)


def test_who_waits_gets_it_once_it_is_given_back(path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with made_once(path):
            order.append("second")

    with ThreadPoolExecutor(1) as pool:
        with made_once(path):
            waiting = pool.submit(second)
            time.sleep(0.3)
            order.append("first")
            assert not waiting.done()
        waiting.result(20)
    assert order == ["first", "second"]


def test_the_owner_shows_that_it_lives(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.05)
    watch = Watch()
    with made_once(path):
        beats = set()
        for _ in range(100):
            claim, held = watch.look(path)
            assert held
            assert claim is not None
            beats.add(claim.beat)
            if len(beats) > 3:
                break
            time.sleep(0.05)
        assert len(beats) > 3


def test_one_that_stands_still_is_followed_by_its_clock_alone(
    path: Path, clock: list[float]
) -> None:
    file = of_another_machine(path)
    os.utime(file, (4e9, 4e9))  # a clock that is far ahead says nothing
    watch, began = Watch(), clock[-1]
    ended = watched_until_stale(watch, path, clock)
    assert lease.STALE <= clock[-1] - began <= lease.STALE + 4
    assert ended is not None
    assert ended.owner == "process 12 on node3"
    follower = take(path, ended)
    assert follower
    assert names(path) == ["thing.lease.1", "thing.lease.2"]
    assert take(path, ended) is None
    assert Watch().look(path).held
    with follower:
        pass
    assert names(path) == []


def test_a_heartbeat_at_any_time_keeps_it(path: Path, clock: list[float]) -> None:
    file, watch = of_another_machine(path), Watch()
    for beat in range(200):
        os.utime(file, ns=(beat, beat))
        assert watch.look(path).held
        clock.append(clock[-1] + lease.BEAT)


def test_who_was_suspended_has_not_watched(path: Path, clock: list[float]) -> None:
    """A laptop that was asleep for a night has seen no heartbeat; the owner is well."""
    of_another_machine(path)
    watch = Watch()
    assert watch.look(path).held
    clock.append(clock[-1] + 30_000)
    assert watch.look(path).held
    clock.append(clock[-1] + 2)
    assert watch.look(path).held


def test_an_owner_that_wakes_up_in_time_keeps_it(path: Path, clock: list[float]) -> None:
    file = of_another_machine(path)
    ended = watched_until_stale(Watch(), path, clock)
    os.utime(file, (5, 5))
    assert take(path, ended) is None
    assert names(path) == ["thing.lease.1"]


def test_who_looked_before_others_came_and_went_does_not_get_it(
    path: Path, clock: list[float]
) -> None:
    """A second owner would be at work beside the one that has come meanwhile."""
    file = of_another_machine(path)
    ended = watched_until_stale(Watch(), path, clock)
    file.unlink()
    with made_once(path):
        assert take(path, ended) is None
        assert names(path) == ["thing.lease.1"]
        assert Watch().look(path).held
    assert names(path) == []


def test_an_owner_that_wakes_up_too_late_leaves_the_follower_alone(
    path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_died_here", lambda *_: False)
    late = take(path, None)
    assert late
    follower = take(path, watched_until_stale(Watch(), path, clock))
    assert follower
    with late:
        pass
    assert names(path) == ["thing.lease.1", "thing.lease.2"]
    assert Watch().look(path).held
    with follower:
        pass
    assert names(path) == []


def test_a_gap_below_a_lease_makes_no_second_owner(path: Path) -> None:
    """An owner woke up and removed its file just as another one took over."""
    of_another_machine(path, 2)
    assert take(path, None) is None
    claim, held = Watch().look(path)
    assert held
    assert claim is not None
    assert claim.generation == 2


@pytest.mark.parametrize("content", ["", '{"token": "a', "[]", "{}"])
def test_one_that_is_being_written_is_held(path: Path, content: str, clock: list[float]) -> None:
    path.with_name("thing.lease.1").write_text(content)
    watch = Watch()
    claim, held = watch.look(path)
    assert held
    assert claim is not None
    assert claim.owner == "a process that begins"
    assert watched_until_stale(watch, path, clock)


HOLD = "from merging.data.lease import made_once; from pathlib import Path; import sys, time\n"
HOLD += "with made_once(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"


def holder(path: Path) -> "subprocess.Popen[str]":
    """Start a process that holds the lease."""
    command = [sys.executable, "-c", HOLD, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_who_died_on_this_machine_is_followed_at_once(path: Path) -> None:
    with holder(path) as process:
        assert Watch().look(path).held
        process.send_signal(signal.SIGSTOP)
        assert Watch().look(path).held  # it stands still, but it lives
        process.kill()
        process.wait()
        claim, held = Watch().look(path)
        assert claim is not None
        assert not held
        started = time.monotonic()
        with made_once(path):
            assert time.monotonic() - started < lease.STALE / 10
    assert names(path) == []


def test_where_files_have_no_locks_the_heartbeat_decides(
    path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    def without(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without)
    lost = take(path, None)
    assert lost
    lost.withdraw(())  # as if its process had died
    monkeypatch.undo()
    times = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: times[-1])
    watch = Watch()
    assert watch.look(path).held
    assert watched_until_stale(watch, path, times)


def test_a_lease_that_cannot_be_written_leaves_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        take(path, None)
    assert names(path) == []


def test_pauses_grow() -> None:
    pauses = pauses_of_waiting()
    first = [next(pauses) for _ in range(8)]
    assert first == sorted(first)
    assert lease.SPOKEN_PAUSE in first
    assert first[-1] < lease.BEAT
