"""Streams over HTTP."""

import asyncio
import json

import httpx
import pytest

from tests.service.doubles import DummyEngine, serving

pytestmark = pytest.mark.anyio


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
async def test_wrong_query_is_refused_before_the_stream(query: str, code: str) -> None:
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
