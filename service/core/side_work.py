"""Work on molecules in the parser processes beside predictions: drawing, searching, alerts."""

import math
from asyncio import timeout
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from cachetools import LRUCache

from service.core.batcher import DeadlineExceededError, QueueFullError
from service.core.parsing import Parser
from service.core.reading import ItemFailure

Item = TypeVar("Item", bound=Hashable)
Result = TypeVar("Result")
_ENTRY_BYTES = 500
"""Memory of an entry of a cache beside what its size says."""


@dataclass
class Bound:
    """Most items that may wait, shared by several kinds of work.

    Attributes:
        most: the number.
        waiting: items that wait or are worked on.
    """

    most: float
    waiting: int = 0


class SideWork(Generic[Item, Result]):
    """One kind of work, with a cache of its results."""

    def __init__(
        self,
        parser: Parser,
        work: Callable[[Item], Result | ItemFailure],
        verb: str,
        bound: Bound,
        cache_bytes: int,
        size: Callable[[Result], int],
    ) -> None:
        """Describe the work.

        Args:
            parser: whose processes do it.
            work: what a process does with an item; it can be sent to a process. Errors are
                returned, not raised.
            verb: what it does, for error messages.
            bound: of the items that wait.
            cache_bytes: memory for results.
            size: bytes of a result.
        """
        self._parser, self._work, self._verb, self._bound = parser, work, verb, bound
        self._cache: LRUCache[Item, Result] = LRUCache(
            cache_bytes, getsizeof=lambda result: size(result) + _ENTRY_BYTES
        )

    async def __call__(
        self, items: Sequence[Item], seconds: float = math.inf
    ) -> list[Result | ItemFailure]:
        """Do the work, or take results from the cache.

        Args:
            items: at least one.
            seconds: time until the deadline.

        Returns:
            One result per item, in their order.

        Raises:
            QueueFullError: too many items wait; nothing was done.
            DeadlineExceededError: the deadline passed.
        """
        found: dict[Item, Result | ItemFailure] = {}
        missing: list[Item] = []
        for item in dict.fromkeys(items):
            result = self._cache.get(item)
            if result is None:
                missing.append(item)
            else:
                found[item] = result
        if missing:
            for item, new in zip(missing, await self._do(missing, seconds), strict=True):
                found[item] = new
                if not isinstance(new, ItemFailure):
                    self._keep(item, new)
        return [found[item] for item in items]

    def _keep(self, item: Item, result: Result) -> None:
        if self._cache.getsizeof(result) < self._cache.maxsize // 2:
            self._cache[item] = result

    async def _do(self, items: Sequence[Item], seconds: float) -> list[Result | ItemFailure]:
        if self._bound.waiting + len(items) > self._bound.most:
            raise QueueFullError(1)
        self._bound.waiting += len(items)
        try:
            async with timeout(None if math.isinf(seconds) else seconds):
                return await self._parser.apply(items, self._work, self._verb)
        except TimeoutError:
            raise DeadlineExceededError from None
        finally:
            self._bound.waiting -= len(items)
