"""Groups of records in order, with little in memory."""

import asyncio
import io
from collections.abc import AsyncIterator, Sequence

import pytest
from starlette.requests import ClientDisconnect

from service.bulk import flow
from service.bulk.flow import (
    Answerer,
    StreamPermits,
    TooManyStreamsError,
    file_groups,
    in_order,
    until_stopping,
)
from service.bulk.ndjson import StalledError
from service.core.answer import Answer, Result
from service.core.batcher import QueueClosedError
from service.core.explaining import NOTHING
from service.core.reading import ItemFailure, Record
from service.formats.molecule_files import FileFormat, open_file
from service.security import Client, KeyRing
from tests.service.doubles import query_of

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
    started: list[int] = []
    both_started, cancelled = asyncio.Event(), []

    async def work(k: int) -> int:
        started.append(k)
        if len(started) == 2:
            both_started.set()
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
    await both_started.wait()
    disconnected.set_result(None)
    with pytest.raises(ClientDisconnect):
        await consuming
    assert (started, sorted(cancelled)) == ([0, 1], [0, 1])


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
    while group := flow.next_group(file.records, flow.GROUP_SIZE):
        sizes.append(len(group))
    assert sum(sizes) == 50
    assert max(sizes) == 11


# --- permits, answers, groups of a file ---


def test_permits_are_as_many_as_there_are() -> None:
    permits = StreamPermits(2)
    permits.acquire()
    permits.acquire()
    with pytest.raises(TooManyStreamsError):
        permits.acquire()
    permits.release()
    permits.acquire()
    with pytest.raises(TooManyStreamsError):
        permits.acquire()


class FakePipeline:
    """Answers every source with its own text, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.calls: list[tuple[object, list[object], dict[str, object]]] = []

    async def predict(
        self, query: object, sources: Sequence[object], **options: object
    ) -> list[Result]:
        self.calls.append((query, list(sources), options))
        if self.error is not None:
            raise self.error
        return [Answer(str(source), {}) for source in sources]


class Waits(KeyRing):
    """Counts what is waited for, and never lets anybody wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[tuple[Client | None, int]] = []

    async def wait(self, client: Client | None, molecules: int) -> None:
        self.waits.append((client, molecules))


LAB = Client(name="lab", sha256="0" * 64)
BAD = Record(ItemFailure("invalid_line", "no JSON"), "b")


def answerer_of(pipeline: FakePipeline, keys: KeyRing) -> Answerer:
    return Answerer(pipeline, query_of(), keys, LAB)  # type: ignore[arg-type]


async def test_group_is_answered_in_order_and_only_readable_records_are_asked_about() -> None:
    pipeline, keys = FakePipeline(), Waits()
    records = [Record("C", 1), BAD, Record("CC", 2)]
    answered = await answerer_of(pipeline, keys)(records)
    assert [record for record, _ in answered] == records
    assert [result for _, result in answered] == [Answer("C", {}), BAD.source, Answer("CC", {})]
    ((_, sources, options),) = pipeline.calls
    assert (sources, options) == (["C", "CC"], {"bounded": False, "explained": NOTHING})
    assert keys.waits == [(LAB, 2)]


async def test_group_without_a_readable_record_needs_neither_rate_nor_pass() -> None:
    pipeline, keys = FakePipeline(), Waits()
    assert await answerer_of(pipeline, keys)([BAD]) == [(BAD, BAD.source)]
    assert (pipeline.calls, keys.waits) == ([], [])


async def test_pass_that_fails_is_an_error_of_its_molecules_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answerer = answerer_of(FakePipeline(RuntimeError("the model broke")), Waits())
    answered = await answerer([Record("C"), BAD, Record("CC")])
    failed = ItemFailure("internal", "the service failed; its log says more under this request id")
    assert [result for _, result in answered] == [failed, BAD.source, failed]
    assert caplog.messages == ["a group of 2 molecules of a stream failed"]
    assert "the model broke" in caplog.text


async def test_service_that_stops_ends_the_group_with_its_error() -> None:
    answerer = answerer_of(FakePipeline(QueueClosedError()), Waits())
    with pytest.raises(QueueClosedError):
        await answerer([Record("C")])


async def test_groups_of_a_file_hold_every_record_once() -> None:
    lines = [f"{'C' * (k % 7 + 1)} m{k}" for k in range(2 * flow.GROUP_SIZE + 5)]
    file = open_file(io.BytesIO("\n".join(lines).encode()), FileFormat("smi"))
    groups = [group async for group in file_groups(file)]
    assert [len(group) for group in groups] == [flow.GROUP_SIZE, flow.GROUP_SIZE, 5]
    names = [record.passthrough[1] for group in groups for record in group]
    assert names == [f"m{k}" for k in range(len(lines))]


@pytest.mark.parametrize("error", [ValueError("no answer"), QueueClosedError()])
async def test_work_that_fails_ends_the_results_and_the_other_work(error: Exception) -> None:
    third_began, cancelled = asyncio.Event(), []

    async def work(k: int) -> int:
        if k == 0:
            return k
        if k == 1:
            await third_began.wait()
            raise error
        third_began.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(k)
            raise
        return k

    results = in_order(numbers(3), work, window=3)
    assert await anext(results) == 0
    with pytest.raises(type(error)):
        await anext(results)
    assert cancelled == [2]


async def test_groups_end_as_they_do_while_the_service_runs() -> None:
    assert [k async for k in until_stopping(numbers(3), asyncio.Event())] == [0, 1, 2]
