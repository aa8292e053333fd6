import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from service.batcher import QueueClosedError, QueueFullError
from service.metrics import Metrics
from service.parsing import ITEM_CODES, Unreadable
from service.pipeline import Answer, Pipeline
from tests.service.doubles import DummyEngine, metric, settings_of

pytestmark = pytest.mark.anyio
ALL = ("bbbp", "clintox", "tox21")


@asynccontextmanager
async def running(engine: DummyEngine, **settings: object) -> AsyncIterator[tuple[Pipeline, Metrics]]:
    metrics = Metrics(ITEM_CODES)
    pipeline = Pipeline(engine, settings_of(**settings), metrics)
    await pipeline.start()
    engine.passes.clear()
    while engine.entered.acquire(blocking=False):
        pass
    try:
        yield pipeline, metrics
    finally:
        engine.gate.set()
        await pipeline.close()


def count(metrics: Metrics, outcome: str) -> float:
    return metric(metrics.exposition().decode(), f'gmerging_molecules_total{{outcome="{outcome}"}}')


async def test_warm_up_comes_before_readiness(engine: DummyEngine) -> None:
    metrics = Metrics(ITEM_CODES)
    pipeline = Pipeline(engine, settings_of(), metrics)
    assert not pipeline.ready
    assert metric(metrics.exposition().decode(), "gmerging_ready") == 0
    await pipeline.start()
    assert engine.passes == [(1, ALL, "moe"), (1, ALL, "own")]
    assert metric(metrics.exposition().decode(), "gmerging_ready") == 1
    await pipeline.close()
    assert not pipeline.ready
    assert metric(metrics.exposition().decode(), "gmerging_ready") == 0


async def test_engine_that_fails_its_warm_up_is_no_service(engine: DummyEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "run", lambda *_: 1 / 0)
    pipeline = Pipeline(engine, settings_of(), Metrics(ITEM_CODES))
    with pytest.raises(ZeroDivisionError):
        await pipeline.start()
    await pipeline.close()


async def test_unreadable_molecules_hinder_no_other(engine: DummyEngine) -> None:
    async with running(engine) as (pipeline, metrics):
        first, bad, last = await pipeline.predict(["OCC", "C1CC", "C"], ("bbbp",), "moe")
        assert isinstance(first, Answer)
        assert isinstance(bad, Unreadable)
        assert isinstance(last, Answer)
        assert (first.smiles, first.probabilities["bbbp"].tolist(), last.probabilities["bbbp"].tolist()) == ("CCO", [0.25], [0.5])
        assert (count(metrics, "ok"), count(metrics, "smiles_syntax")) == (2, 1)
    assert engine.passes == [(2, ("bbbp",), "moe")]


async def test_nothing_readable_needs_no_pass(engine: DummyEngine) -> None:
    async with running(engine) as (pipeline, _):
        results = await pipeline.predict(["", "("], ALL, "moe")
        assert [result.code for result in results if isinstance(result, Unreadable)] == ["empty_smiles", "smiles_syntax"]
    assert engine.passes == []


async def test_orders_of_the_same_tasks_share_a_pass(engine: DummyEngine) -> None:
    async with running(engine) as (pipeline, _):
        engine.gate.clear()
        held = asyncio.create_task(pipeline.predict(["C"], ALL, "moe"))
        await asyncio.to_thread(engine.entered.acquire)
        others = [asyncio.create_task(pipeline.predict(["CC"], tasks, "moe")) for tasks in (("bbbp", "tox21"), ("tox21", "bbbp"))]
        others.append(asyncio.create_task(pipeline.predict(["CC"], ("bbbp", "tox21"), "own")))
        while pipeline._batcher.waiting_items < 3:
            await asyncio.sleep(0)
        engine.gate.set()
        await asyncio.gather(held, *others)
    assert sorted(engine.passes[1:]) == [(1, ("bbbp", "tox21"), "own"), (2, ("bbbp", "tox21"), "moe")]


async def test_large_request_is_cut(engine: DummyEngine) -> None:
    async with running(engine, max_batch_cost=12) as (pipeline, metrics):
        results = await pipeline.predict(["CC"] * 5, ALL, "moe")  # each costs 2 atoms times 3 tasks
        assert len(results) == 5
        assert metric(metrics.exposition().decode(), "gmerging_batch_atoms_sum") == 10
    assert [graphs for graphs, _, _ in engine.passes] == [2, 2, 1]


async def test_failure_is_counted_and_raised(engine: DummyEngine) -> None:
    async with running(engine) as (pipeline, metrics):
        with pytest.raises(RuntimeError, match="the model broke"):
            await pipeline.predict(["[U]", "C"], ALL, "moe")
        assert count(metrics, "failed") == 2
        assert len(await pipeline.predict(["C"], ALL, "moe")) == 1


async def test_full_and_closed_queue_refuse_and_count(engine: DummyEngine) -> None:
    async with running(engine, max_batch_cost=20, max_pending_cost=20) as (pipeline, metrics):
        engine.gate.clear()
        held = asyncio.create_task(pipeline.predict(["CCCCC"], ALL, "moe"))
        await asyncio.to_thread(engine.entered.acquire)
        with pytest.raises(QueueFullError):
            await pipeline.predict(["CC", "C"], ALL, "moe")
        assert count(metrics, "refused") == 2
        engine.gate.set()
        await held
    with pytest.raises(QueueClosedError):
        await pipeline.predict(["C"], ALL, "moe")
    assert count(metrics, "refused") == 3


async def test_cancelled_request_leaves_the_queue_and_its_place(engine: DummyEngine) -> None:
    async with running(engine) as (pipeline, metrics):
        engine.gate.clear()
        held = asyncio.create_task(pipeline.predict(["C"], ALL, "moe"))
        await asyncio.to_thread(engine.entered.acquire)
        waiting = asyncio.create_task(pipeline.predict(["CC"], ALL, "moe"))
        while pipeline._batcher.waiting_items < 1:
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert (pipeline._batcher.waiting_items, pipeline._batcher.pending_cost, count(metrics, "cancelled")) == (0, 3, 1)
        engine.gate.set()
        await held
    assert engine.passes == [(1, ALL, "moe")]


async def test_routing_weights_are_counted_for_mixing_only(engine: DummyEngine) -> None:
    async with running(engine) as (pipeline, metrics):
        await pipeline.predict(["C"], ("bbbp",), "moe")
        await pipeline.predict(["C"], ("bbbp",), "own")
        assert metrics.routing.molecules == {"bbbp": 1}
