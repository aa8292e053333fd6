"""The answer cache: what is found again, and what makes room."""

import numpy as np
import pytest

from service.core.cache import AnswerCache
from service.core.engine import TaskAnswer

ENTRY_BYTES = 700 + 4 + 24  # overhead, one float32 value, 2 x 3 float32 weights


def answer(value: float) -> TaskAnswer:
    return TaskAnswer(np.array([value], dtype=np.float32), np.zeros((2, 3), dtype=np.float32))


def test_answers_are_found_by_everything_that_they_depend_on() -> None:
    cache = AnswerCache(10**6)
    first, second = answer(0.25), answer(0.5)
    cache.put("d1", "CCO", {"a": first, "b": second}, "own")
    found = cache.get("d1", "CCO", ["b", "a"], "own")
    assert found is not None
    assert [(task, float(kept.values[0])) for task, kept in found.items()] == [
        ("b", 0.5),
        ("a", 0.25),
    ]
    assert cache.get("d1", "CCO", ["a", "c"], "own") is None  # one task is missing
    assert cache.get("d2", "CCO", ["a"], "own") is None
    assert cache.get("d1", "CC", ["a"], "own") is None
    assert cache.get("d1", "CCO", ["a"], "moe") is None


def test_molecule_that_came_as_a_graph_is_neither_kept_nor_found() -> None:
    cache = AnswerCache(10**6)
    cache.put("d", None, {"a": answer(1)}, "own")
    assert (cache.size_bytes, cache.get("d", None, ["a"], "own")) == (0, None)


def test_least_recently_used_makes_room() -> None:
    cache = AnswerCache(2 * ENTRY_BYTES)
    for smiles in ("C", "CC"):
        cache.put("d", smiles, {"a": answer(1)}, "own")
    assert cache.size_bytes == 2 * ENTRY_BYTES
    assert cache.get("d", "C", ["a"], "own") is not None
    cache.put("d", "CCC", {"a": answer(1)}, "own")
    there = [s for s in ("C", "CC", "CCC") if cache.get("d", s, ["a"], "own") is not None]
    assert (there, cache.size_bytes) == (["C", "CCC"], 2 * ENTRY_BYTES)


@pytest.mark.parametrize("max_bytes", [0, ENTRY_BYTES - 1])
def test_answer_that_is_larger_than_the_cache_is_not_kept(max_bytes: int) -> None:
    cache = AnswerCache(max_bytes)
    cache.put("d", "C", {"a": answer(1)}, "own")
    assert (cache.size_bytes, cache.get("d", "C", ["a"], "own")) == (0, None)


def test_cache_keeps_a_copy_and_not_the_pass_that_it_was_cut_from() -> None:
    values = np.zeros((1000, 1), dtype=np.float32)
    weights = np.zeros((1000, 2, 3), dtype=np.float32)
    cache = AnswerCache(10**6)
    cache.put("d", "C", {"a": TaskAnswer(values[0], weights[0])}, "own")
    values[:] = weights[:] = 1
    found = cache.get("d", "C", ["a"], "own")
    assert found is not None
    kept = found["a"]
    assert (kept.values.base, kept.routing.base) == (None, None)
    assert (kept.values.tolist(), kept.routing.sum()) == ([0.0], 0.0)
