"""NDJSON: lines to records, and answers to lines."""

import asyncio
import codecs
import json
from collections.abc import AsyncIterator, Sequence

import pytest

from service.bulk.ndjson import StalledError, ndjson_groups
from service.core.reading import InChI, MolBlock, Record, Unreadable
from service.schemas import ETHANOL_GRAPH

pytestmark = pytest.mark.anyio


async def body_of(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def records_of(*chunks: bytes, limit: int = 100) -> list[Record]:
    return [record async for group in ndjson_groups(body_of(*chunks), limit) for record in group]


def codes(records: Sequence[Record]) -> list[str]:
    return [
        record.source.code if isinstance(record.source, Unreadable) else "ok" for record in records
    ]


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
