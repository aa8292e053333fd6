import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from models.experts.unified import Routing
from service.core.answer import Answer
from service.core.batcher import DeadlineExceededError, QueueClosedError, QueueFullError
from service.core.engine import PredictionQuery
from service.core.pipeline import Pipeline
from service.core.reading import ITEM_CODES, ItemFailure, Parsed
from service.telemetry.metrics import Metrics
from tests.service.doubles import DummyEngine, metric, settings_of

pytestmark = pytest.mark.anyio
ALL = ("bbbp", "clintox", "tox21")


@asynccontextmanager
async def running(
    engine: DummyEngine, **settings: object
) -> AsyncIterator[tuple[Pipeline, Metrics]]:
    metrics = Metrics(ITEM_CODES)
    pipeline = Pipeline(settings_of(**settings), metrics)
    metrics.read_gauges_with(pipeline.gauges)
    await pipeline.start()
    try:
        yield pipeline, metrics
    finally:
        engine.gate.set()
        await pipeline.close()


def ask(
    engine: DummyEngine, tasks: tuple[str, ...] = ALL, routing: Routing = "moe"
) -> PredictionQuery:
    return PredictionQuery.of("dummy", engine, tasks, routing)


def count(metrics: Metrics, outcome: str) -> float:
    return metric(metrics.exposition().decode(), f'gmerging_molecules_total{{outcome="{outcome}"}}')


async def test_readiness() -> None:
    metrics = Metrics(ITEM_CODES)
    pipeline = Pipeline(settings_of(), metrics)
    metrics.read_gauges_with(pipeline.gauges)
    states = []

    def note() -> None:
        states.append(
            (
                pipeline.accepts,
                pipeline.ready,
                metric(metrics.exposition().decode(), "gmerging_ready"),
            )
        )

    note()
    await pipeline.start()
    note()
    pipeline.drain()
    note()
    await pipeline.close()
    note()
    assert states == [(False, False, 0), (True, True, 1), (True, False, 0), (False, False, 0)]


async def test_unreadable_molecules_hinder_no_other(engine: DummyEngine) -> None:
    async with running(engine) as (pipeline, metrics):
        first, bad, last = await pipeline.predict(ask(engine, ("bbbp",)), ["OCC", "C1CC", "C"])
        assert isinstance(first, Answer)
        assert isinstance(bad, ItemFailure)
        assert isinstance(last, Answer)
        assert (
            first.smiles,
            first.tasks["bbbp"].values.tolist(),
            last.tasks["bbbp"].values.tolist(),
        ) == ("CCO", [0.25], [0.5])
        assert (count(metrics, "ok"), count(metrics, "smiles_syntax")) == (2, 1)
    assert engine.passes == [(2, ("bbbp",), "moe")]


async def test_nothing_readable_needs_no_pass(engine: DummyEngine) -> None:
    async with running(engine) as (pipeline, _):
        results = await pipeline.predict(ask(engine), ["", "("])
        assert [result.code for result in results if isinstance(result, ItemFailure)] == [
            "empty_smiles",
            "smiles_syntax",
        ]
    assert engine.passes == []


async def test_orders_of_the_same_tasks_share_a_pass(engine: DummyEngine) -> None:
    async with running(engine) as (pipeline, _):
        engine.gate.clear()
        held = asyncio.create_task(pipeline.predict(ask(engine), ["C"]))
        await asyncio.to_thread(engine.entered.acquire)
        others = [
            asyncio.create_task(pipeline.predict(ask(engine, tasks), ["CC"]))
            for tasks in (("bbbp", "tox21"), ("tox21", "bbbp"))
        ]
        others.append(
            asyncio.create_task(pipeline.predict(ask(engine, ("bbbp", "tox21"), "own"), ["CC"]))
        )
        while pipeline._batcher.waiting_items < 3:
            await asyncio.sleep(0)
        engine.gate.set()
        await asyncio.gather(held, *others)
    assert sorted(engine.passes[1:]) == [
        (1, ("bbbp", "tox21"), "own"),
        (2, ("bbbp", "tox21"), "moe"),
    ]


async def test_engines_do_not_share_a_pass_nor_the_cache(engine: DummyEngine) -> None:
    other = DummyEngine(version="2", shift=1)
    async with running(engine) as (pipeline, _):
        both = [
            await pipeline.predict(ask(model, ("bbbp",)), ["C"])
            for model in (engine, other, engine)
        ]
    values = [
        answer.tasks["bbbp"].values.tolist() for (answer,) in both if isinstance(answer, Answer)
    ]
    assert values == [[0.5], [pytest.approx(1 / 3)], [0.5]]
    assert (len(engine.passes), len(other.passes)) == (1, 1)


async def test_large_request_is_cut(engine: DummyEngine) -> None:
    async with running(engine, max_batch_cost=12) as (pipeline, metrics):
        # each costs 2 atoms times 3 tasks
        results = await pipeline.predict(ask(engine), ["CC"] * 5)
        assert len(results) == 5
        assert metric(metrics.exposition().decode(), "gmerging_batch_atoms_sum") == 10
        assert metric(metrics.exposition().decode(), "gmerging_batch_fill_ratio_sum") == 2.5
    assert [graphs for graphs, _, _ in engine.passes] == [2, 2, 1]


async def test_tasks_on_one_stream_cost_one(engine: DummyEngine) -> None:
    stream_of = dict.fromkeys(engine.info.tasks, "common")
    engine.info = dataclasses.replace(engine.info, stream_of=stream_of)
    async with running(engine, max_batch_cost=12) as (pipeline, metrics):
        await pipeline.predict(ask(engine), ["CC"] * 5)
        assert metric(
            metrics.exposition().decode(), "gmerging_batch_fill_ratio_sum"
        ) == pytest.approx(10 / 12)
    assert [graphs for graphs, _, _ in engine.passes] == [5]


async def test_failure_is_counted_and_raised(engine: DummyEngine) -> None:
    async with running(engine) as (pipeline, metrics):
        with pytest.raises(RuntimeError, match="the model broke"):
            await pipeline.predict(ask(engine), ["[U]", "C"])
        assert count(metrics, "failed") == 2
        assert len(await pipeline.predict(ask(engine), ["C"])) == 1


async def test_full_and_closed_queue_refuse_and_count(engine: DummyEngine) -> None:
    async with running(engine, max_batch_cost=20, max_pending_cost=20) as (pipeline, metrics):
        engine.gate.clear()
        held = asyncio.create_task(pipeline.predict(ask(engine), ["CCCCC"]))
        await asyncio.to_thread(engine.entered.acquire)
        with pytest.raises(QueueFullError):
            await pipeline.predict(ask(engine), ["CC", "C"])
        assert count(metrics, "refused") == 2
        streamed = asyncio.create_task(pipeline.predict(ask(engine), ["CC"], bounded=False))
        engine.gate.set()
        await asyncio.gather(held, streamed)
    with pytest.raises(QueueClosedError):
        await pipeline.predict(ask(engine), ["C"])
    assert count(metrics, "refused") == 3


async def test_cancelled_request_leaves_the_queue_and_its_place(engine: DummyEngine) -> None:
    async with running(engine) as (pipeline, metrics):
        engine.gate.clear()
        held = asyncio.create_task(pipeline.predict(ask(engine), ["C"]))
        await asyncio.to_thread(engine.entered.acquire)
        waiting = asyncio.create_task(pipeline.predict(ask(engine), ["CC"]))
        while pipeline._batcher.waiting_items < 1:
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert (
            pipeline._batcher.waiting_items,
            pipeline._batcher.pending_cost,
            count(metrics, "cancelled"),
        ) == (0, 3, 1)
        engine.gate.set()
        await held
    assert engine.passes == [(1, ALL, "moe")]


async def test_expired_request_leaves_the_queue_and_its_place(engine: DummyEngine) -> None:
    async with running(engine) as (pipeline, metrics):
        engine.gate.clear()
        held = asyncio.create_task(pipeline.predict(ask(engine), ["C"]))
        await asyncio.to_thread(engine.entered.acquire)
        with pytest.raises(DeadlineExceededError):
            await pipeline.predict(ask(engine), ["CC", "CCC"], 0.05)
        assert (
            pipeline._batcher.waiting_items,
            pipeline._batcher.pending_cost,
            count(metrics, "expired"),
        ) == (0, 3, 2)
        engine.gate.set()
        await held
    assert engine.passes == [(1, ALL, "moe")]


async def test_routing_weights_are_counted_for_mixing_only(engine: DummyEngine) -> None:
    async with running(engine) as (pipeline, metrics):
        await pipeline.predict(ask(engine, ("bbbp",)), ["C"])
        await pipeline.predict(ask(engine, ("bbbp",), "own"), ["C"])
        await pipeline.predict(ask(engine, ("bbbp",), "merged"), ["C"])
        text = metrics.exposition().decode()
    assert metric(text, 'gmerging_routed_molecules_total{model="dummy",task="bbbp"}') == 2


async def test_known_molecules_need_no_pass(engine: DummyEngine) -> None:
    async with running(engine) as (pipeline, metrics):
        first = await pipeline.predict(ask(engine), ["OCC", "C"])
        again = await pipeline.predict(ask(engine, ("tox21", "bbbp")), ["C1", "C", "CC", "CCO"])
        assert [
            result.tasks["bbbp"].values.tolist() for result in again if isinstance(result, Answer)
        ] == [[0.5], [pytest.approx(1 / 3)], [0.25]]
        assert isinstance(first[0], Answer)
        text = metrics.exposition().decode()
    assert engine.passes == [(2, ALL, "moe"), (1, ("bbbp", "tox21"), "moe")]
    assert (
        metric(text, 'gmerging_cache_total{result="hit"}'),
        metric(text, 'gmerging_cache_total{result="miss"}'),
    ) == (2, 3)
    assert metric(text, "gmerging_cache_bytes") > 0


async def test_an_answer_that_never_waits_can_be_late(engine: DummyEngine) -> None:
    """Read in this process and known: no timeout can fire."""
    async with running(engine) as (pipeline, metrics):
        await pipeline.predict(ask(engine), ["CC"])
        with pytest.raises(DeadlineExceededError):
            await pipeline.predict(ask(engine), ["CC"], 1e-9)
        assert count(metrics, "expired") == 1


async def test_cache_can_be_switched_off(engine: DummyEngine) -> None:
    async with running(engine, cache_bytes=0) as (pipeline, _):
        for _ in range(2):
            await pipeline.predict(ask(engine), ["C"])
    assert len(engine.passes) == 2


async def test_a_request_is_alone_until_another_is_admitted(
    engine: DummyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(engine) as (pipeline, _):
        alone = []
        parse = pipeline._parser.parse

        async def noted(*arguments: Any, idle: bool) -> list[Parsed | ItemFailure]:
            alone.append(idle)
            return await parse(*arguments, idle=idle)

        monkeypatch.setattr(pipeline._parser, "parse", noted)
        await pipeline.predict(ask(engine), ["C"])
        engine.gate.clear()
        first = asyncio.create_task(pipeline.predict(ask(engine), ["CC"]))
        while len(alone) < 2:
            await asyncio.sleep(0.001)
        second = asyncio.create_task(pipeline.predict(ask(engine), ["CCC"]))
        while len(alone) < 3:
            await asyncio.sleep(0.001)
        engine.gate.set()
        await asyncio.gather(first, second)
    assert alone == [True, True, False]
