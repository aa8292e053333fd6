"""A cache of answers: an answer depends only on the molecule, the task, the routing and the
artifact."""

from collections.abc import Sequence
from dataclasses import dataclass

from cachetools import LRUCache

from models.experts.unified import Routing
from service.core.engine import TaskAnswer

# Size of an entry without its arrays: key and strings, two array headers, a link of the list.
# Measured with tracemalloc over 10,000 entries.
_OVERHEAD_BYTES = 700


@dataclass(frozen=True)
class CacheKey:
    """Everything that an answer depends on.

    Attributes:
        digest: of the artifact.
        smiles: canonical SMILES of the molecule.
        task, routing: of the query.
    """

    digest: str
    smiles: str
    task: str
    routing: Routing


class AnswerCache:
    """The most recently used answers, up to a number of bytes. Entries are per molecule and task:
    requests for different tasks share them."""

    def __init__(self, max_bytes: int) -> None:
        """Make an empty cache; with 0 bytes it stays empty."""
        self._entries: LRUCache[CacheKey, TaskAnswer] = LRUCache(max_bytes, getsizeof=_size)

    @property
    def size_bytes(self) -> int:
        """Approximate size of the entries."""
        return int(self._entries.currsize)

    def get(
        self, digest: str, smiles: str | None, tasks: Sequence[str], routing: Routing
    ) -> dict[str, TaskAnswer] | None:
        """The answers of all tasks, or None if any of them is missing; graphs, which have no
        SMILES, are not cached."""
        if smiles is None:
            return None
        found = {task: self._entries.get(CacheKey(digest, smiles, task, routing)) for task in tasks}
        return (
            {task: answer for task, answer in found.items() if answer is not None}
            if None not in found.values()
            else None
        )

    def put(
        self, digest: str, smiles: str | None, answers: dict[str, TaskAnswer], routing: Routing
    ) -> None:
        """Keep the answers for a molecule; those of a graph, which has no SMILES, are not kept."""
        if smiles is None:
            return
        for task, answer in answers.items():
            if _size(answer) <= self._entries.maxsize:
                # Copies: a view would keep the arrays of the whole batch alive.
                self._entries[CacheKey(digest, smiles, task, routing)] = TaskAnswer(
                    answer.values.copy(), answer.routing.copy()
                )


def _size(answer: TaskAnswer) -> int:
    return answer.values.nbytes + answer.routing.nbytes + _OVERHEAD_BYTES
