import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from service.core.batcher import Batcher, DeadlineExceededError, QueueClosedError, QueueFullError
from service.telemetry.statistics import PassStatistics

pytestmark = pytest.mark.anyio
Texts = Batcher[str, str, str]


class Worker:
    """Answers each item with its key; can be held inside a pass; fails on "bad" and answers too
    little on "short"."""

    def __init__(self) -> None:
        self.passes: list[tuple[str, str]] = []
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)

    def __call__(self, key: str, items: list[str]) -> list[str]:
        self.passes.append((key, "".join(items)))
        self.entered.release()
        assert self.gate.wait(30)
        if "!" in items:
            raise RuntimeError("bad item")
        return [key + item for item in items][: 0 if "?" in items else None]


@asynccontextmanager
async def held(
    worker: Worker, *, max_batch_cost: int = 4, max_pending_cost: int = 1000, **options: Any
) -> AsyncIterator[Texts]:
    """A batcher whose worker is busy with the item "0" until the worker's gate opens."""
    statistics: Callable[[PassStatistics], None] = options.pop("on_pass", lambda _: None)
    batcher = Texts(
        worker,
        max_batch_cost=max_batch_cost,
        max_pending_cost=max_pending_cost,
        on_pass=statistics,
        **options,
    )
    batcher.start()
    first = asyncio.create_task(batcher.submit("k", "0", [1]))
    await asyncio.to_thread(worker.entered.acquire)
    try:
        yield batcher
    finally:
        worker.gate.set()
        await first
        await batcher.close()


async def queued(
    batcher: Texts, *work: Coroutine[Any, Any, list[str]]
) -> list[asyncio.Task[list[str]]]:
    """The submissions as tasks, once all of them are in the queue, in order."""
    tasks = [asyncio.create_task(one) for one in work]
    # new tasks run before this one goes on, each up to its wait for the answer
    await asyncio.sleep(0)
    return tasks


async def test_idle_batcher_answers_at_once_and_in_order() -> None:
    worker = Worker()
    worker.gate.set()
    batcher = Texts(worker, max_batch_cost=100, max_pending_cost=100, on_pass=lambda _: None)
    batcher.start()
    assert await batcher.submit("k", "abc", [1, 1, 1]) == ["ka", "kb", "kc"]
    assert worker.passes == [("k", "abc")]
    await batcher.close()


async def test_what_waits_shares_a_pass() -> None:
    worker = Worker()
    async with held(worker) as batcher:
        tasks = await queued(
            batcher,
            batcher.submit("k", "a", [1]),
            batcher.submit("k", "b", [1]),
            batcher.submit("k", "c", [1]),
        )
        worker.gate.set()
        assert await asyncio.gather(*tasks) == [["ka"], ["kb"], ["kc"]]
    assert worker.passes[1:] == [("k", "abc")]


async def test_other_key_is_another_pass() -> None:
    worker = Worker()
    async with held(worker) as batcher:
        tasks = await queued(
            batcher,
            batcher.submit("k", "a", [1]),
            batcher.submit("other ", "b", [1]),
            batcher.submit("k", "c", [1]),
        )
        worker.gate.set()
        assert await asyncio.gather(*tasks) == [["ka"], ["other b"], ["kc"]]
    assert worker.passes[1:] == [("k", "ac"), ("other ", "b")]


async def test_cost_cuts_passes_and_a_costly_item_runs_alone() -> None:
    worker = Worker()
    async with held(worker) as batcher:
        (task,) = await queued(batcher, batcher.submit("k", "abcde", [2, 2, 1, 9, 1]))
        worker.gate.set()
        assert await task == ["ka", "kb", "kc", "kd", "ke"]
    assert worker.passes[1:] == [("k", "ab"), ("k", "c"), ("k", "d"), ("k", "e")]


async def test_large_request_delays_a_small_one_by_no_more_than_a_pass() -> None:
    worker = Worker()
    async with held(worker) as batcher:
        large, small = await queued(
            batcher, batcher.submit("k", "abcdefgh", [1] * 8), batcher.submit("k", "X", [1])
        )
        worker.gate.set()
        assert await small == ["kX"]
        assert await large == [f"k{item}" for item in "abcdefgh"]
    assert worker.passes[1:] == [("k", "abcX"), ("k", "defg"), ("k", "h")]


async def test_large_request_goes_to_the_end_after_each_pass() -> None:
    worker = Worker()
    async with held(worker) as batcher:
        tasks = await queued(
            batcher,
            batcher.submit("k", "abcdefgh", [1] * 8),
            batcher.submit("other ", "XY", [3, 3]),
        )
        worker.gate.set()
        await asyncio.gather(*tasks)
    assert [items for _, items in worker.passes[1:]] == ["abcd", "X", "efgh", "Y"]


async def test_cancelled_entry_takes_part_in_no_pass() -> None:
    worker = Worker()
    async with held(worker) as batcher:
        cancelled, kept = await queued(
            batcher, batcher.submit("k", "abcdefgh", [1] * 8), batcher.submit("k", "X", [1])
        )
        cancelled.cancel()
        await asyncio.wait([cancelled])
        assert batcher.waiting_items == 1
        worker.gate.set()
        assert await kept == ["kX"]
    assert worker.passes[1:] == [("k", "X")]


async def test_entry_cancelled_during_its_pass_harms_nobody() -> None:
    worker = Worker()
    async with held(worker) as batcher:
        worker.gate.set()
        await batcher.submit("k", "a", [1])
        worker.gate.clear()
        while worker.entered.acquire(blocking=False):
            pass
        gone, kept = await queued(
            batcher, batcher.submit("k", "g", [1]), batcher.submit("k", "h", [1])
        )
        await asyncio.to_thread(worker.entered.acquire)
        gone.cancel()
        worker.gate.set()
        assert await kept == ["kh"]
        assert await batcher.submit("k", "i", [1]) == ["ki"]


async def test_error_fails_the_entries_of_its_pass_only() -> None:
    worker = Worker()
    async with held(worker) as batcher:
        failing = batcher.submit("k", "!", [1]), batcher.submit("k", "a", [1])
        tasks = await queued(
            batcher, *failing, batcher.submit("other ", "b", [1]), batcher.submit("k", "cd", [3, 1])
        )
        worker.gate.set()
        bad, beside, other, later = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(bad, RuntimeError)
        assert isinstance(beside, RuntimeError)
        assert (other, later) == (["other b"], ["kc", "kd"])
        assert await batcher.submit("k", "e", [1]) == ["ke"]


async def test_rest_of_a_failed_request_is_not_run() -> None:
    worker = Worker()
    async with held(worker) as batcher:
        (task,) = await queued(batcher, batcher.submit("k", "!bcdefgh", [1] * 8))
        worker.gate.set()
        with pytest.raises(RuntimeError, match="bad item"):
            await task
    assert worker.passes[1:] == [("k", "!bcd")]


async def test_wrong_number_of_results_is_an_error() -> None:
    worker = Worker()
    async with held(worker) as batcher:
        worker.gate.set()
        with pytest.raises(RuntimeError, match="got 0 results for 1 items"):
            await batcher.submit("k", "?", [1])


async def test_full_queue_refuses_early_and_says_when_to_come_back() -> None:
    worker = Worker()
    now = [0.0]
    async with held(worker, max_pending_cost=10, clock=lambda: now[0]) as batcher:
        with batcher.admit(8):
            assert batcher.pending_cost == 8
            with pytest.raises(QueueFullError) as refusal, batcher.admit(3):
                pytest.fail("was let in")
            assert refusal.value.retry_after_seconds == 1  # nothing is known yet
            with batcher.admit(2):
                assert batcher.pending_cost == 10
                now[0] = 3.0
            with pytest.raises(QueueFullError) as refusal, batcher.admit(3):
                pytest.fail("was let in")
            assert refusal.value.retry_after_seconds == 12  # a cost of 2 took 3 s
        assert batcher.pending_cost == 0


async def test_request_that_cannot_be_answered_in_time_is_refused_at_once() -> None:
    worker = Worker()
    now = [0.0]
    async with held(worker, clock=lambda: now[0]) as batcher:
        with batcher.admit(10):
            with batcher.admit(1):
                now[0] = 1.0  # a cost of 1 takes a second
            with batcher.admit(1, seconds=17):
                # 12 s, and half as much again
                with pytest.raises(QueueFullError), batcher.admit(1, seconds=17):
                    pytest.fail("was let in")
                with batcher.admit(1, seconds=1, bounded=False):
                    assert batcher.pending_cost == 12


async def test_speed_counts_what_came_and_not_what_it_cost() -> None:
    worker = Worker()
    now = [0.0]
    async with held(worker, clock=lambda: now[0]) as batcher:
        with batcher.admit(100) as permit:
            permit.cost = 0  # all of it was in a cache
            now[0] = 1.0
        assert batcher._seconds_for(100) == pytest.approx(1.0)


async def test_speed_is_that_of_the_last_seconds_and_of_what_was_answered() -> None:
    worker = Worker()
    now = [0.0]
    async with held(worker, clock=lambda: now[0]) as batcher:
        for seconds, cost in ((1.0, 1), (100.0, 1000)):
            with batcher.admit(cost):
                now[0] += seconds
        for _ in range(10):
            with contextlib.suppress(asyncio.CancelledError), batcher.admit(10**6):
                now[0] += 100
                raise asyncio.CancelledError
        now[0] += 1000  # idle
        assert batcher._seconds_for(10) == pytest.approx(1.0, rel=1e-3)


async def test_permit_takes_a_better_estimate() -> None:
    worker = Worker()
    async with held(worker, max_pending_cost=10) as batcher:
        with batcher.admit(10) as permit:
            with pytest.raises(QueueFullError), batcher.admit(5):
                pytest.fail("was let in")
            permit.cost = 5
            with batcher.admit(5):
                assert batcher.pending_cost == 10


async def test_expired_entry_takes_part_in_no_pass() -> None:
    worker = Worker()
    now = [0.0]
    async with held(worker, clock=lambda: now[0]) as batcher:
        expired, kept = await queued(
            batcher,
            batcher.submit("k", "a", [1], deadline=1.0),
            batcher.submit("k", "b", [1], deadline=3.0),
        )
        now[0] = 2.0
        assert batcher.oldest_seconds == 2.0
        worker.gate.set()
        assert await kept == ["kb"]
        with pytest.raises(DeadlineExceededError):
            await expired
    assert worker.passes[1:] == [("k", "b")]


async def test_idle_service_admits_any_cost() -> None:
    worker = Worker()
    async with held(worker, max_pending_cost=10) as batcher:
        with batcher.admit(11), pytest.raises(QueueFullError), batcher.admit(1):
            pytest.fail("was let in")


async def test_close_answers_what_waits_and_refuses_what_comes() -> None:
    worker = Worker()
    async with held(worker) as batcher:
        tasks = await queued(
            batcher, batcher.submit("k", "abcdef", [1] * 6), batcher.submit("other ", "g", [1])
        )
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(QueueClosedError), batcher.admit(1):
            pytest.fail("was let in")
        with pytest.raises(QueueClosedError):
            await batcher.submit("k", "z", [1])
        worker.gate.set()
        await closing
        assert [task.result() for task in tasks] == [[f"k{item}" for item in "abcdef"], ["other g"]]


async def test_statistics_of_a_pass() -> None:
    worker, seen = Worker(), list[PassStatistics]()
    clock = iter(range(100))
    async with held(worker, on_pass=seen.append, clock=lambda: float(next(clock))) as batcher:
        tasks = await queued(
            batcher, batcher.submit("k", "abc", [2, 2, 2]), batcher.submit("k", "d", [1])
        )
        assert batcher.waiting_items == 4
        worker.gate.set()
        await asyncio.gather(*tasks)
    # Readings of the clock: "0" arrives 0, starts 2; two arrivals 3 and 4; "0" ends 5; pass 7 to 8
    # takes a, d; pass 10 to 11 takes b, c. The readings between are for what has expired.
    assert seen == [
        PassStatistics(1, 0.25, 3.0, (2.0,)),
        PassStatistics(2, 0.75, 1.0, (4.0, 3.0)),
        PassStatistics(2, 1.0, 1.0, ()),
    ]
