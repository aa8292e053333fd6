"""Streams: in order, with little in memory, and with an end that says why."""

import asyncio
import codecs
import json
from collections.abc import AsyncIterator, Sequence

import httpx
import pytest
from starlette.requests import ClientDisconnect

from service.bulk.flow import in_order, until_stopping
from service.bulk.ndjson import StalledError, ndjson_groups
from service.core.batcher import QueueClosedError
from service.core.reading import InChI, MolBlock, Record, Unreadable
from service.schemas import ETHANOL_GRAPH
from tests.service.doubles import DummyEngine, serving

pytestmark = pytest.mark.anyio


async def given(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def numbers(count: int) -> AsyncIterator[int]:
    for k in range(count):
        yield k


async def records_of(*parts: bytes, limit: int = 100) -> list[Record]:
    return [record async for group in ndjson_groups(given(*parts), limit) for record in group]


def codes(records: Sequence[Record]) -> list[str]:
    return [
        record.source.code if isinstance(record.source, Unreadable) else "ok" for record in records
    ]


# --- order and backpressure ---


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


# --- lines ---


async def test_lines_are_found_however_they_are_cut() -> None:
    body = (
        b'"CCO"\n{"smiles": "C", "id": 7}\n\n  \n{"id": "x", "graph": '
        + json.dumps(ETHANOL_GRAPH).encode()
        + b"}"
    )
    whole = await records_of(body, limit=1000)
    assert [record.own for record in whole] == [None, 7, "x"]
    assert [whole[0].source, whole[1].source] == ["CCO", "C"]
    for size in (1, 2, 7):
        assert (
            await records_of(*(body[k : k + size] for k in range(0, len(body), size)), limit=1000)
            == whole
        )


async def test_lines_that_are_no_molecule() -> None:
    lines = [
        b"{",
        b"7",
        b"null",
        b"[]",
        b"{}",
        b'{"smiles": 7}',
        b'{"smiles": "C", "x": 1}',
        b'{"smiles": "C", "graph": {}}',
        b"\xff",
        b'"C"',
    ]
    records = await records_of(b"\n".join(lines))
    assert codes(records) == ["invalid_line"] * 9 + ["ok"]


@pytest.mark.parametrize(
    ("line", "got"),
    [(b"null", "null"), (b"7", "a number"), (b"[]", "a list"), (b"true", "true or false")],
)
async def test_lines_that_are_no_molecule_are_named(line: bytes, got: str) -> None:
    (record,) = await records_of(line)
    assert isinstance(record.source, Unreadable)
    expected = "expected a molecule as a JSON string, or an object"
    assert record.source.message == f"the line: got {got}, {expected}"


async def test_byte_order_mark_is_no_text() -> None:
    records = await records_of(codecs.BOM_UTF8 + b'"C"\n"CC"\n')
    assert [record.source for record in records] == ["C", "CC"]
    assert codes(await records_of(b'"C"\n' + codecs.BOM_UTF8 + b'"C"\n')) == ["ok", "invalid_line"]


async def test_lines_in_other_writings() -> None:
    inchi = "InChI=1S/CH4/h1H4"
    lines = [
        inchi,
        {"id": 1, "inchi": inchi},
        {"id": 2, "mol_block": "a\nb"},
        {"smiles": "C", "inchi": inchi},
        {"id": 3, "smiles": None},
    ]
    records = await records_of(b"\n".join(json.dumps(line).encode() for line in lines), limit=1000)
    assert [record.source for record in records[:3]] == [inchi, InChI(inchi), MolBlock("a\nb")]
    assert codes(records[3:]) == ["invalid_line", "invalid_line"]
    assert [record.own for record in records] == [None, 1, 2, None, 3]


async def test_id_comes_back_with_an_error_too() -> None:
    (record,) = await records_of(b'{"id": "a7", "smiles": 7}')
    assert record.own == "a7"


@pytest.mark.parametrize("size", [1, 30, 1000])
async def test_line_that_is_too_long_is_one_error(size: int) -> None:
    body = b'"C"\n"' + b"C" * 500 + b'"\n"CC"\n'
    records = await records_of(*(body[k : k + size] for k in range(0, len(body), size)))
    assert codes(records) == ["ok", "line_too_long", "ok"]


async def test_last_line_may_be_too_long() -> None:
    assert codes(await records_of(b'"C"\n"', b"C" * 500)) == ["ok", "line_too_long"]


async def test_groups_are_bounded() -> None:
    groups = [len(group) async for group in ndjson_groups(given(b'"C"\n' * 150), 100)]
    assert groups == [64, 64, 22]


async def test_silence_is_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.bulk.ndjson.STALL_SECONDS", 0.05)

    async def silent() -> AsyncIterator[bytes]:
        yield b'"C"\n'
        await asyncio.sleep(60)
        yield b""

    groups = ndjson_groups(silent(), 100)
    assert len(await anext(groups)) == 1
    with pytest.raises(StalledError):
        await anext(groups)


# --- over HTTP ---


def lines_of(response: httpx.Response) -> list[dict[str, object]]:
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


async def test_stream() -> None:
    async with serving() as client:
        response = await client.post(
            "/predict/stream?tasks=bbbp&routing=moe",
            content=b'"CCO"\n{"id": 5, "smiles": "C1"}\nnonsense\n"C"',
        )
    assert [(line["index"], line["smiles"], line.get("id")) for line in lines_of(response)] == [
        (0, "CCO", None),
        (1, None, 5),
        (2, None, None),
        (3, "C", None),
    ]
    assert [
        line["error"]["code"] if "error" in line else line["tasks"] for line in lines_of(response)
    ] == [  # type: ignore[index]
        {"bbbp": {"p_np": 0.25}},
        "smiles_syntax",
        "invalid_line",
        {"bbbp": {"p_np": 0.5}},
    ]
    assert response.headers["x-model-digest"] == "0" * 64


async def test_long_stream_keeps_order_and_loses_nothing() -> None:
    async with serving(cache_bytes=0) as client:
        response = await client.post(
            "/predict/stream?tasks=bbbp",
            content=b"".join(
                b'{"id": %d, "smiles": "%b"}\n' % (k, b"C" * (k % 50 + 1)) for k in range(2000)
            ),
        )
    lines = lines_of(response)
    assert [line["id"] for line in lines] == list(range(2000))
    for k, line in enumerate(lines):
        assert line["tasks"]["bbbp"]["p_np"] == pytest.approx(1 / (k % 50 + 2))  # type: ignore[index]


async def test_pass_that_fails_is_an_error_of_its_molecules() -> None:
    async with serving() as client:
        lines = lines_of(await client.post("/predict/stream?tasks=bbbp", content=b'"C"\n"[U]"\n'))
    assert {line["error"]["code"] for line in lines} == {"internal"}  # type: ignore[index]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("tasks=nope", "unknown_task"),
        ("model=nope", "unknown_model"),
        ("tasks=bbbp&tasks=bbbp", "invalid_request"),
    ],
)
async def test_wrong_question_is_refused_before_the_stream(query: str, code: str) -> None:
    async with serving() as client:
        response = await client.post(f"/predict/stream?{query}", content=b'"C"\n')
    assert (response.status_code, response.json()["code"]) == (422, code)


async def test_places_are_few_and_given_back(engine: DummyEngine) -> None:
    async with serving(engine, max_streams=1) as client:
        engine.gate.clear()
        held = asyncio.create_task(client.post("/predict/stream", content=b'"C"\n'))
        await asyncio.to_thread(engine.entered.acquire)
        refused = await client.post("/predict/stream", content=b'"C"\n')
        assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (
            429,
            "too_many_streams",
            "5",
        )
        engine.gate.set()
        assert len(lines_of(await held)) == 1
        assert len(lines_of(await client.post("/predict/stream", content=b'"C"\n'))) == 1
