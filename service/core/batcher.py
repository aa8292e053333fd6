"""One queue in front of one worker thread: requests that wait at the same time share a pass.
Independent of torch and of molecules.

Rules:

- There is no waiting window. When the worker is free, it takes a pass from the queue; an idle
  service answers at once.
- A pass has items of one key, up to a maximal cost. Entries of that key take turns, item by item,
  and an entry with items left goes to the end of the queue: thousands of items delay a single one
  by at most one pass.
- The queue is bounded by cost and by time. `admit` refuses a request before any work is done for
  it: when too much is waiting, or when that would take longer than the request's deadline.
- Every entry has its own deadline. Cancelled and expired entries take part in no further pass.
- An error in a pass fails the entries that had items in it, and no others.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from service.telemetry.statistics import PassStatistics

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Result = TypeVar("Result")
_LONGEST_RETRY_SECONDS = 60
_MARGIN = 1.5
_MEMORY_SECONDS = 5.0


class QueueFullError(Exception):
    """Too much waits already, or more than can be done before the deadline."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(f"the queue is full, try again in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds


class QueueClosedError(Exception):
    """The service is stopping."""


class DeadlineExceededError(Exception):
    """The deadline came before the answer."""


@dataclass(eq=False)
class Permit:
    """Permission of a request to be in the queue.

    Attributes:
        estimate: of its cost, at admission.
        cost: the estimate at first; set to the exact cost when that is known.
    """

    estimate: int
    cost: int


@dataclass(eq=False)
class _Entry(Generic[Key, Item, Result]):
    """The items of one request, with their own clock."""

    key: Key
    items: Sequence[Item]
    costs: Sequence[int]
    arrived: float
    deadline: float
    answer: asyncio.Future[list[Result]]
    taken: int = 0
    results: list[Result] = field(default_factory=list)

    @property
    def has_more(self) -> bool:
        return self.taken < len(self.items) and not self.answer.done()

    def deliver(self, results: Sequence[Result]) -> None:
        self.results.extend(results)
        if len(self.results) == len(self.items) and not self.answer.done():
            self.answer.set_result(self.results)

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class Batcher(Generic[Key, Item, Result]):
    """Batches items of waiting requests into passes. Only `run` is called on the worker thread; all
    else runs on the event loop."""

    def __init__(
        self,
        run: Callable[[Key, list[Item]], Sequence[Result]],
        *,
        max_batch_cost: int,
        max_pending_cost: int,
        on_pass: Callable[[PassStatistics], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Prepare; `start` begins the work.

        Args:
            run: answers the items of one pass, one result per item; called on the worker thread.
            max_batch_cost: of one pass; an item that costs more runs alone.
            max_pending_cost: of everything admitted and not yet answered.
            on_pass: told of each pass that gave answers.
            clock: seconds.
        """
        self._run, self._on_pass, self._clock = run, on_pass, clock
        self._max_batch_cost, self._max_pending_cost = max_batch_cost, max_pending_cost
        self._waiting: deque[_Entry[Key, Item, Result]] = deque()
        self._permits: set[Permit] = set()
        self._busy_from = self._recent_cost = self._recent_seconds = 0.0
        self._wake = asyncio.Event()
        self._closing = False
        self._worker: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    # The next three are for scrapes, which may come on other threads: each takes a copy in one
    # step.

    @property
    def pending_cost(self) -> int:
        """Cost of everything admitted and not yet answered."""
        return sum(permit.cost for permit in list(self._permits))

    @property
    def waiting_items(self) -> int:
        """Items that no pass has taken yet."""
        return sum(
            len(entry.items) - entry.taken for entry in list(self._waiting) if entry.has_more
        )

    @property
    def oldest_seconds(self) -> float:
        """How long the entry that has waited longest for its first pass has waited."""
        arrivals = [
            entry.arrived for entry in list(self._waiting) if entry.has_more and not entry.taken
        ]
        return self._clock() - min(arrivals) if arrivals else 0.0

    def now(self) -> float:
        """The time on the clock that deadlines are set by."""
        return self._clock()

    def start(self) -> None:
        """Begin to work."""
        self._worker = asyncio.create_task(self._work(), name="batcher")

    async def close(self) -> None:
        """Refuse what comes, answer what waits, then stop."""
        self._closing = True
        self._wake.set()
        if self._worker is not None:
            await self._worker
        self._thread.shutdown()

    @contextmanager
    def admit(
        self, cost: int, seconds: float = math.inf, *, bounded: bool = True
    ) -> Iterator[Permit]:
        """Hold room in the queue for a request, from before the first work on it until it is
        answered.

        An idle service admits a request of any cost, for it could never be admitted otherwise.

        Args:
            cost: an estimate.
            seconds: until the request's deadline.
            bounded: False for work that is bounded by its own means, and is let in whatever waits.

        Raises:
            QueueFullError: too much is pending, or more than can be answered in `seconds`.
            QueueClosedError: the service is stopping.
        """
        if self._closing:
            raise QueueClosedError
        pending = self.pending_cost
        # Who comes later takes turns with this request, so that it ends later than what waits now
        # would have it.
        expected = _MARGIN * self._seconds_for(self._pending_estimate + cost)
        if bounded and pending and (pending + cost > self._max_pending_cost or expected > seconds):
            raise QueueFullError(
                max(
                    1,
                    min(
                        _LONGEST_RETRY_SECONDS, math.ceil(self._seconds_for(self._pending_estimate))
                    ),
                )
            )
        permit = Permit(cost, cost)
        if not self._permits:
            self._busy_from = self._clock()
        self._permits.add(permit)
        answered = False
        try:
            yield permit
            answered = True
        finally:
            self._permits.remove(permit)
            self._account(permit.estimate if answered else None)

    async def submit(
        self, key: Key, items: Sequence[Item], costs: Sequence[int], deadline: float = math.inf
    ) -> list[Result]:
        """Answer items, in their order.

        Args:
            key: items are only batched with those of an equal key.
            items: at least one.
            costs: of each item, positive.
            deadline: on the batcher's clock.

        Raises:
            DeadlineExceededError: the deadline came while items waited.
            QueueClosedError: the service is stopping.
            Exception: what `run` raised in a pass that held one of the items.
        """
        if self._closing:
            raise QueueClosedError
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append(_Entry(key, items, costs, self._clock(), deadline, answer))
        self._wake.set()
        result: list[Result] = await answer
        return result

    @property
    def _pending_estimate(self) -> int:
        return sum(permit.estimate for permit in self._permits)

    def _account(self, cost: int | None) -> None:
        """Remember how fast work goes, from admission to answer: passes alone would not show what
        parsing takes.

        In estimates, as what waits is counted: what a cache answers costs nothing in the end, and
        was fast nevertheless. The time up to a request that was given up (None) says nothing of
        speed: or clients that only come to leave could make the service refuse everybody else.
        """
        now = self._clock()
        elapsed, self._busy_from = now - self._busy_from, now
        if cost is not None:
            fade = math.exp(-elapsed / _MEMORY_SECONDS)
            self._recent_cost = fade * self._recent_cost + cost
            self._recent_seconds = fade * self._recent_seconds + elapsed

    def _seconds_for(self, cost: int) -> float:
        """How long work of this cost should take, as it went in the last seconds in which there was
        any; 0 before there was."""
        return cost * self._recent_seconds / self._recent_cost if self._recent_cost else 0.0

    async def _work(self) -> None:
        while True:
            portions = self._next_pass()
            if portions:
                await self._run_pass(portions)
            elif self._closing:
                return
            else:
                self._wake.clear()
                await self._wake.wait()

    def _next_pass(self) -> dict[_Entry[Key, Item, Result], int]:
        """How many items of which entries come next; the queue is left as if they had been
        served."""
        now = self._clock()
        for entry in self._waiting:
            if entry.deadline <= now:
                entry.fail(DeadlineExceededError())
        queue = [entry for entry in self._waiting if entry.has_more]
        turns = deque(entry for entry in queue if entry.key == queue[0].key)
        portions = dict.fromkeys(turns, 0)
        cost = 0
        while turns:
            entry = turns.popleft()
            item_cost = entry.costs[entry.taken + portions[entry]]
            if cost and cost + item_cost > self._max_batch_cost:
                break
            cost += item_cost
            portions[entry] += 1
            if entry.taken + portions[entry] < len(entry.items):
                turns.append(entry)
        portions = {entry: count for entry, count in portions.items() if count}
        self._waiting = deque([*(entry for entry in queue if entry not in portions), *portions])
        return portions

    async def _run_pass(self, portions: dict[_Entry[Key, Item, Result], int]) -> None:
        started = self._clock()
        waited = tuple(started - entry.arrived for entry in portions if entry.taken == 0)
        key = next(iter(portions)).key
        items: list[Item] = []
        cost = 0
        for entry, count in portions.items():
            taken = slice(entry.taken, entry.taken + count)
            items += entry.items[taken]
            cost += sum(entry.costs[taken])
            entry.taken += count
        try:
            results = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._run, key, items
            )
            if len(results) != len(items):
                raise RuntimeError(f"got {len(results)} results for {len(items)} items")
            seconds = self._clock() - started
            self._on_pass(PassStatistics(len(items), cost / self._max_batch_cost, seconds, waited))
        # whatever it is, it concerns the clients of this pass, and the worker lives on
        except Exception as error:
            for entry in portions:
                entry.fail(error)
            return
        begin = 0
        for entry, count in portions.items():
            entry.deliver(results[begin : begin + count])
            begin += count
