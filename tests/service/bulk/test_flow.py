"""Groups of records in order, with little in memory."""

import asyncio
import io
from collections.abc import AsyncIterator

import pytest
from starlette.requests import ClientDisconnect

from service.bulk import flow
from service.bulk.flow import in_order, until_stopping
from service.bulk.ndjson import StalledError
from service.core.batcher import QueueClosedError
from service.formats.molecule_files import FileFormat, open_file

pytestmark = pytest.mark.anyio


async def numbers(count: int) -> AsyncIterator[int]:
    for k in range(count):
        yield k


async def test_results_come_in_order_whatever_takes_long() -> None:
    async def slow_at_first(k: int) -> int:
        await asyncio.sleep(0.02 / (k + 1))
        return k

    assert [k async for k in in_order(numbers(10), slow_at_first)] == list(range(10))


async def test_no_more_is_read_than_the_window_and_one() -> None:
    read: list[int] = []

    async def source() -> AsyncIterator[int]:
        for k in range(100):
            read.append(k)
            yield k

    async def work(k: int) -> int:
        return k

    results = in_order(source(), work, window=3)
    for k in range(5):
        assert await anext(results) == k
        await asyncio.sleep(0.01)
        assert len(read) <= k + 5
    await results.aclose()


async def test_a_result_does_not_wait_for_more_input() -> None:
    more: asyncio.Queue[int] = asyncio.Queue()

    async def source() -> AsyncIterator[int]:
        while True:
            yield await more.get()

    async def work(k: int) -> int:
        return k

    results = in_order(source(), work)
    for k in range(3):
        more.put_nowait(k)
        assert await asyncio.wait_for(anext(results), 5) == k
    await results.aclose()


async def test_failing_input_ends_it_after_what_came_before() -> None:
    async def source() -> AsyncIterator[int]:
        yield 1
        yield 2
        raise StalledError

    async def work(k: int) -> int:
        await asyncio.sleep(0.01)
        return k

    results = in_order(source(), work)
    assert [await anext(results), await anext(results)] == [1, 2]
    with pytest.raises(StalledError):
        await anext(results)


async def test_work_is_given_up_when_nobody_wants_it() -> None:
    disconnected = asyncio.get_running_loop().create_future()
    started, cancelled = asyncio.Event(), []

    async def work(k: int) -> int:
        started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(k)
            raise
        return k

    async def consume() -> None:
        async for _ in in_order(numbers(9), work, disconnected, window=2):
            pass

    consuming = asyncio.create_task(consume())
    await started.wait()
    disconnected.set_result(None)
    with pytest.raises(ClientDisconnect):
        await consuming
    assert set(cancelled) <= {0, 1}
    assert cancelled


async def test_input_ends_when_the_service_stops() -> None:
    stopping = asyncio.Event()
    groups = until_stopping(numbers(3), stopping)
    assert await anext(groups) == 0
    stopping.set()
    with pytest.raises(QueueClosedError):
        await anext(groups)


def test_memory_of_a_group_of_long_records() -> None:
    content = "smiles,note\n" + f"C,{'x' * 100_000}\n" * 50
    file = open_file(io.BytesIO(content.encode()), FileFormat("csv"))
    sizes = []
    while group := flow._group(file.records):
        sizes.append(len(group))
    assert sum(sizes) == 50
    assert max(sizes) == 11
