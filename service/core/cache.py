"""Answers that were given before. An answer is a function of the molecule, the task and the
artifact, so it can be given again."""

from collections.abc import Sequence
from dataclasses import dataclass

from cachetools import LRUCache

from models.experts.unified import Routing
from service.core.engine import TaskAnswer

# Of an entry, beside its arrays: the key with its strings, two array headers, a link of the list.
# Measured with tracemalloc over 10,000 entries.
_OVERHEAD_BYTES = 700


@dataclass(frozen=True)
class CacheKey:
    """What an answer depends on.

    Attributes:
        digest: of the artifact.
        smiles: canonical.
        task, routing: as asked.
    """

    digest: str
    smiles: str
    task: str
    routing: Routing


class AnswerCache:
    """The answers asked for most recently, up to a number of bytes. One entry per molecule and
    task, so that requests for other tasks share them."""

    def __init__(self, max_bytes: int) -> None:
        """An empty cache; of 0 bytes, it stays empty."""
        self._entries: LRUCache[CacheKey, TaskAnswer] = LRUCache(max_bytes, getsizeof=_size)

    @property
    def size_bytes(self) -> int:
        """What the entries take, about."""
        return int(self._entries.currsize)

    def get(
        self, digest: str, smiles: str | None, tasks: Sequence[str], routing: Routing
    ) -> dict[str, TaskAnswer] | None:
        """The answers of all tasks, or None if one is not there. A molecule without SMILES, one
        that came as a graph, is never there."""
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
        """Remember the answers for a molecule."""
        if smiles is None:
            return
        for task, answer in answers.items():
            if _size(answer) <= self._entries.maxsize:
                # Copies: a slice would keep the whole batch that it was cut from.
                self._entries[CacheKey(digest, smiles, task, routing)] = TaskAnswer(
                    answer.values.copy(), answer.routing.copy()
                )


def _size(answer: TaskAnswer) -> int:
    return answer.values.nbytes + answer.routing.nbytes + _OVERHEAD_BYTES
