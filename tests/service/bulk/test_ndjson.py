"""NDJSON: lines to records, and answers to lines."""

import asyncio
import codecs
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import pytest

from service.bulk.ndjson import StalledError, ndjson_answers, ndjson_groups
from service.core.answer import Answer, Result
from service.core.batcher import QueueClosedError
from service.core.engine import TaskAnswer
from service.core.reading import InChI, ItemFailure, MolBlock, Record
from service.formats.inflating import BrokenEncodingError
from service.schemas import ETHANOL_GRAPH
from tests.service.doubles import LABELS, query_of

pytestmark = pytest.mark.anyio


async def body_of(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def records_of(*chunks: bytes, limit: int = 100) -> list[Record]:
    return [record async for group in ndjson_groups(body_of(*chunks), limit) for record in group]


def codes(records: Sequence[Record]) -> list[str]:
    return [
        record.source.code if isinstance(record.source, ItemFailure) else "ok" for record in records
    ]


async def test_lines_are_found_however_they_are_cut() -> None:
    body = (
        b'"CCO"\n{"smiles": "C", "id": 7}\n\n  \n{"id": "x", "graph": '
        + json.dumps(ETHANOL_GRAPH).encode()
        + b"}"
    )
    whole = await records_of(body, limit=1000)
    assert [record.passthrough for record in whole] == [None, 7, "x"]
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
    assert isinstance(record.source, ItemFailure)
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
    assert [record.passthrough for record in records] == [None, 1, 2, None, 3]


async def test_id_comes_back_with_an_error_too() -> None:
    (record,) = await records_of(b'{"id": "a7", "smiles": 7}')
    assert record.passthrough == "a7"


@pytest.mark.parametrize(
    ("identifier", "expected"),
    [
        (0, 0),
        (1, 1),
        (-7, -7),
        ("", ""),
        ("a" * 256, "a" * 256),
        ("a" * 257, None),
        (True, None),
        (1.5, None),
        ([1], None),
        (None, None),
    ],
)
async def test_id_of_an_invalid_line_comes_back_if_it_is_one(
    identifier: object, expected: object
) -> None:
    line = json.dumps({"id": identifier, "smiles": 7}).encode()
    (record,) = await records_of(line, limit=1000)
    assert codes([record]) == ["invalid_line"]
    assert record.passthrough == expected
    assert type(record.passthrough) is type(expected)


@pytest.mark.parametrize("size", [1, 30, 1000])
async def test_line_that_is_too_long_is_one_error(size: int) -> None:
    body = b'"C"\n"' + b"C" * 500 + b'"\n"CC"\n'
    records = await records_of(*(body[k : k + size] for k in range(0, len(body), size)))
    assert codes(records) == ["ok", "line_too_long", "ok"]


async def test_last_line_may_be_too_long() -> None:
    assert codes(await records_of(b'"C"\n"', b"C" * 500)) == ["ok", "line_too_long"]


async def test_groups_are_bounded() -> None:
    groups = [len(group) async for group in ndjson_groups(body_of(b'"C"\n' * 150), 100)]
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


# --- answers ---

VALUES = np.array([0.25], dtype=np.float32)
WEIGHTS = np.full((2, 3), 1 / 3, dtype=np.float32)
GOOD = Answer("CCO", {"bbbp": TaskAnswer(VALUES, WEIGHTS)})
BAD = ItemFailure("smiles_syntax", "got C1")


class FakeAnswerer:
    """Gives every record the result that stands in its place."""

    def __init__(self) -> None:
        self.query = query_of()
        self.pipeline = self
        self.stopping = asyncio.Event()

    async def __call__(self, records: list[Record]) -> list[tuple[Record, Result]]:
        return [(record, GOOD if record.source == "CCO" else BAD) for record in records]


async def groups_of(
    *groups: list[Record], error: Exception | None = None
) -> AsyncIterator[list[Record]]:
    for group in groups:
        yield group
    if error is not None:
        raise error


async def answers_of(
    groups: AsyncIterator[list[Record]], *, explain: Sequence[str] = ()
) -> list[dict[str, Any]]:
    answerer = FakeAnswerer()
    chunks = ndjson_answers(groups, answerer, explain)  # type: ignore[arg-type]
    text = b"".join([chunk async for chunk in chunks])
    assert text.endswith(b"\n") or not text
    return [json.loads(line) for line in text.splitlines()]


async def test_a_line_for_every_record_with_its_id_and_a_running_index() -> None:
    lines = await answers_of(groups_of([Record("CCO", "a"), Record("C1", 0)], [Record("CCO")]))
    shown = {"smiles": "CCO", "tasks": {"bbbp": {"p_np": 0.25}}}
    error = {"code": "smiles_syntax", "message": "got C1"}
    assert lines == [
        {"index": 0, "id": "a", **shown},
        {"index": 1, "id": 0, "smiles": None, "error": error},
        {"index": 2, **shown},
    ]


async def test_routing_weights_are_added_if_they_are_asked_for() -> None:
    (line,) = await answers_of(groups_of([Record("CCO")]), explain=["routing"])
    experts = dict.fromkeys(LABELS, 0.33333334)
    assert line["routing"] == {"bbbp": {"layer_0": experts, "graph": experts}}


async def test_nothing_is_answered_by_nothing() -> None:
    assert await answers_of(groups_of()) == []


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            QueueClosedError(),
            "not_ready",
            "the service is stopping; 2 lines were answered, send the others again",
        ),
        (
            BrokenEncodingError("got gzip that ends too early"),
            "bad_request",
            "got gzip that ends too early; 2 lines were answered",
        ),
        (StalledError(), "stalled", "nothing came for 300 s; 2 lines were answered"),
    ],
    ids=["stopping", "encoding", "stalled"],
)
async def test_stream_that_ends_early_says_why_and_how_far_it_came(
    error: Exception, code: str, message: str
) -> None:
    lines = await answers_of(groups_of([Record("CCO"), Record("C1")], error=error))
    assert [line.get("index") for line in lines] == [0, 1, None]
    assert lines[-1] == {"error": {"code": code, "message": message}}


async def test_other_errors_are_not_swallowed() -> None:
    with pytest.raises(ValueError, match="a bug"):
        await answers_of(groups_of([Record("CCO")], error=ValueError("a bug")))
