"""Dynamic batching: a queue and one worker thread; waiting requests share passes of the model.
Independent of torch and of molecules.

- There is no batching window. The worker starts a pass as soon as it is free and the queue is not
  empty, so an idle service answers at once.
- All items of a pass have the same key; their total cost is bounded. Entries of the key are served
  round robin, item by item; an entry with items left moves to the end of the queue. An entry of
  thousands of items therefore delays others by at most one pass.
- The queue is bounded by cost and by time. `admit` refuses a request before any work on it if the
  pending cost is too high, or if the expected time exceeds the request's deadline.
- Every entry has a deadline. Cancelled and expired entries are not part of further passes.
- An exception in a pass fails only the entries with items in that pass.
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
    """A request was refused: the queue is full, or cannot answer it before its deadline.

    Attributes:
        retry_after_seconds: when to try again, 1 to 60 s.
    """

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(f"the queue is full, try again in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds


class QueueClosedError(Exception):
    """The service is stopping."""


class DeadlineExceededError(Exception):
    """The deadline of a request passed before it was answered."""


@dataclass(eq=False)
class Permit:
    """Admission of a request to the queue.

    Attributes:
        estimate: cost estimated at admission.
        cost: the estimate; set to the exact cost once it is known.
    """

    estimate: int
    cost: int


@dataclass(eq=False)
class _Entry(Generic[Key, Item, Result]):
    """The items of one request, with their arrival time and deadline."""

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
    other code runs on the event loop."""

    def __init__(
        self,
        run: Callable[[Key, list[Item]], Sequence[Result]],
        *,
        max_batch_cost: int,
        max_pending_cost: int,
        on_pass: Callable[[PassStatistics], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Create a batcher; `start` starts its worker.

        Args:
            run: function (key, items) that returns one result per item of a pass; called on the
                worker thread.
            max_batch_cost: maximal cost of a pass; an item that costs more gets a pass of its own.
            max_pending_cost: maximal cost of all admitted and unanswered requests.
            on_pass: called with statistics of each successful pass.
            clock: returns the time in seconds.
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

    # Scrapes may read these properties on other threads; `list` copies atomically.

    @property
    def pending_cost(self) -> int:
        """Cost of all admitted and unanswered requests."""
        return sum(permit.cost for permit in list(self._permits))

    @property
    def admitted(self) -> int:
        """Number of admitted and unanswered requests."""
        return len(self._permits)

    @property
    def waiting_items(self) -> int:
        """Number of items that are not yet in a pass."""
        return sum(
            len(entry.items) - entry.taken for entry in list(self._waiting) if entry.has_more
        )

    @property
    def oldest_seconds(self) -> float:
        """Longest current waiting time of entries without a pass so far; 0 if there are none."""
        arrivals = [
            entry.arrived for entry in list(self._waiting) if entry.has_more and not entry.taken
        ]
        return self._clock() - min(arrivals) if arrivals else 0.0

    def now(self) -> float:
        """Return the time on the batcher's clock, on which deadlines are given."""
        return self._clock()

    def start(self) -> None:
        """Start the worker on the running event loop."""
        self._worker = asyncio.create_task(self._work(), name="batcher")

    async def close(self) -> None:
        """Refuse new requests, answer the waiting ones, then stop the worker."""
        self._closing = True
        self._wake.set()
        if self._worker is not None:
            await self._worker
        self._thread.shutdown()

    @contextmanager
    def admit(
        self, cost: int, seconds: float = math.inf, *, bounded: bool = True
    ) -> Iterator[Permit]:
        """Admit a request to the queue for the duration of the `with` block, in which it is read
        and answered.

        An idle service admits requests of any cost, which could otherwise never be admitted.

        Args:
            cost: estimated cost of the request.
            seconds: time until its deadline.
            bounded: False admits the request regardless of the queue.

        Yields:
            The permit, whose `cost` the caller corrects once it is known.

        Raises:
            QueueFullError: the pending cost is too high, or the request would not be answered
                within `seconds`.
            QueueClosedError: the service is stopping.
        """
        if self._closing:
            raise QueueClosedError
        pending = self.pending_cost
        # The margin is for later requests, which take turns with this one and delay it.
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
        """Put items into the queue and wait for their results.

        Args:
            key: items share passes only with items of an equal key.
            items: at least one.
            costs: positive cost of each item.
            deadline: time on the batcher's clock.

        Returns:
            One result per item, in their order.

        Raises:
            DeadlineExceededError: the deadline passed while items were waiting.
            QueueClosedError: the service is stopping.
            Exception: any exception of `run` in a pass with one of the items.
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
        """Update the observed speed, from admission to answer, so that it includes parsing.

        Speed is measured in estimated cost, as are waiting requests; the exact cost of cached
        answers is 0. Time until an abandoned request (None) is not counted, so that clients that
        disconnect cannot slow the estimate and make the service refuse others.
        """
        now = self._clock()
        elapsed, self._busy_from = now - self._busy_from, now
        if cost is not None:
            fade = math.exp(-elapsed / _MEMORY_SECONDS)
            self._recent_cost = fade * self._recent_cost + cost
            self._recent_seconds = fade * self._recent_seconds + elapsed

    def _seconds_for(self, cost: int) -> float:
        """Return the expected time for a cost at the speed of the last busy seconds; 0 before the
        first request was answered."""
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
        """Choose the number of items of each entry in the next pass, and reorder the queue as if
        they had been served."""
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
        # Only the requests of this pass fail; the worker goes on.
        except Exception as error:
            for entry in portions:
                entry.fail(error)
            return
        begin = 0
        for entry, count in portions.items():
            entry.deliver(results[begin : begin + count])
            begin += count
