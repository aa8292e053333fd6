"""LRU cache of predictions by artifact, molecule, task, routing and experts."""

from collections.abc import Sequence
from dataclasses import dataclass

from cachetools import LRUCache

from models.experts.combination import ExpertChoice
from models.experts.unified import Routing
from service.core.engine import TaskAnswer

# Size of an entry without its arrays: key, strings, array headers and list node; measured with
# tracemalloc over 10,000 entries.
_OVERHEAD_BYTES = 700
_EXPERT_BYTES = 200  # of an expert's entry: array header, and its share of the dictionary


@dataclass(frozen=True)
class CacheKey:
    """Everything that a prediction depends on.

    Attributes:
        digest: digest of the artifact.
        molecule: the text that decides the molecule's graph (`ReadMolecule.key`).
        task, routing, experts: as requested.
    """

    digest: str
    molecule: str
    task: str
    routing: Routing
    experts: ExpertChoice | None = None


class AnswerCache:
    """Cache of the most recently used predictions, bounded in bytes. Entries are per molecule and
    task, so that requests for different tasks share them."""

    def __init__(self, max_bytes: int) -> None:
        """Create an empty cache; with `max_bytes` 0 it stays empty."""
        self._entries: LRUCache[CacheKey, TaskAnswer] = LRUCache(max_bytes, getsizeof=_size)

    @property
    def size_bytes(self) -> int:
        """Approximate size of the entries."""
        return int(self._entries.currsize)

    def get(
        self,
        digest: str,
        molecule: str | None,
        tasks: Sequence[str],
        routing: Routing,
        experts: ExpertChoice | None = None,
    ) -> dict[str, TaskAnswer] | None:
        """Return the answers of a molecule by task, or None if any is missing. Graphs, which have
        no key (None), are never cached."""
        if molecule is None:
            return None
        keys = {task: CacheKey(digest, molecule, task, routing, experts) for task in tasks}
        found = {task: self._entries.get(key) for task, key in keys.items()}
        return (
            {task: answer for task, answer in found.items() if answer is not None}
            if None not in found.values()
            else None
        )

    def put(
        self,
        digest: str,
        molecule: str | None,
        answers: dict[str, TaskAnswer],
        routing: Routing,
        experts: ExpertChoice | None = None,
    ) -> None:
        """Store the answers of a molecule by task; do nothing for graphs (`molecule` None)."""
        if molecule is None:
            return
        for task, answer in answers.items():
            if _size(answer) <= self._entries.maxsize:
                # Copies: a view would keep the arrays of the whole batch alive.
                said = {name: values.copy() for name, values in answer.experts.items()}
                self._entries[CacheKey(digest, molecule, task, routing, experts)] = TaskAnswer(
                    answer.values.copy(), answer.routing.copy(), experts=said
                )


def _size(answer: TaskAnswer) -> int:
    said = sum(values.nbytes + _EXPERT_BYTES for values in answer.experts.values())
    return answer.values.nbytes + answer.routing.nbytes + said + _OVERHEAD_BYTES
