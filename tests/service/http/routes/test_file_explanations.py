"""Explanations as columns of files and in lines of streams, and formulas in cells."""

import asyncio
import csv
import io
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.doubles import DummyEngine, check_problem, engine_with_drugs, serving

pytestmark = pytest.mark.anyio
QUINONE = "O=C1C=CC(=O)C=C1"
TABLE = f"smiles,note\n{QUINONE},x\nC1,y\nC,z\n"
ALERTED = "quinone_A(370); chinone_1"


async def sent(
    query: str, content: str = TABLE, engine: DummyEngine | None = None, **data: Any
) -> httpx.Response:
    async with serving(engine or engine_with_drugs()) as client:
        files = {"file": ("m.csv", content.encode())}
        return await client.post(f"/predict/file?{query}", files=files, data=data)


def rows(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


@pytest.mark.parametrize("query", ["explain=drugs&explain=alerts", "explain=drugs,alerts"])
async def test_explanations_are_columns_after_those_of_before(query: str) -> None:
    plain = rows((await sent("tasks=bbbp,tox21")).text)
    text = (await sent(f"tasks=bbbp,tox21&{query}")).text
    assert '""' not in text, "an empty cell is empty"
    explained = rows(text)
    width = len(plain[0])
    assert [row[:width] for row in explained] == plain
    added = [row[width:] for row in explained]
    assert added[0] == [
        "bbbp.p_np percentile among drugs",
        "tox21.NR-AR percentile among drugs",
        "tox21.NR-ER percentile among drugs",
        "tox21.SR-p53 percentile among drugs",
        "gmerging_alerts",
    ]
    # 1 / (8 atoms + 1), 1 / (1 atom + 1); drugs were not predicted for tox21
    assert added[1:] == [
        ["11.11", "", "", "", ALERTED],
        ["", "", "", "", ""],
        ["50.0", "", "", "", ""],
    ]


async def test_rows_with_line_ends_in_cells_have_them_too() -> None:
    response = await sent("tasks=tox21&explain=drugs,alerts", f'smiles,note\n{QUINONE},"a\rb"\n')
    header, row = rows(response.text)
    assert dict(zip(header, row, strict=True))["gmerging_alerts"] == ALERTED
    assert row[-2] == ""


async def test_ndjson_has_explanations_as_predict_has_them() -> None:
    response = await sent("output=ndjson&tasks=bbbp&explain=drugs&explain=alerts")
    first, broken, last = map(json.loads, response.text.splitlines())
    assert first["drugs"] == {"bbbp": {"p_np": 11.11}}
    assert [alert["name"] for alert in first["alerts"]] == ALERTED.split("; ")
    assert "alerts" not in broken
    assert last["alerts"] == []


async def test_options_in_the_form() -> None:
    response = await sent("tasks=bbbp", explain="alerts", escape_formulas="true")
    assert rows(response.text)[0][-1] == "gmerging_alerts"


async def test_what_cannot_be_explained_is_said_before_anything_is_read() -> None:
    problem = check_problem(await sent("explain=drgus"), 422, "invalid_request")
    assert "did you mean 'drugs'?" in problem.detail
    check_problem(await sent("explain=atoms"), 422, "invalid_request")
    unknown = await sent("explain=drugs", engine=DummyEngine())
    check_problem(unknown, 422, "unsupported_explanation")
    check_problem(await sent("explain=drugs&routing=moe"), 422, "unsupported_explanation")


async def test_lines_of_a_stream() -> None:
    body = json.dumps(QUINONE) + "\n" + json.dumps({"id": 7, "smiles": "C"}) + "\n"
    async with serving(engine_with_drugs()) as client:
        path = "/predict/stream?tasks=bbbp"
        got = await client.post(f"{path}&explain=drugs,alerts&explain_routing=1", content=body)
        wrong = await client.post(f"{path}&explain=drgus", content=body)
    first, last = map(json.loads, got.text.splitlines())
    assert (first["drugs"], last["drugs"]) == ({"bbbp": {"p_np": 11.11}}, {"bbbp": {"p_np": 50.0}})
    assert (len(first["alerts"]), last["alerts"], last["id"]) == (2, [], 7)
    assert first["routing"]
    check_problem(wrong, 422, "invalid_request")


async def test_jobs_have_them_too(tmp_path: Path) -> None:
    query = "tasks=bbbp&explain=drugs,alerts&escape_formulas=true"
    content = "smiles,note\nC,=1+1\n"
    async with serving(engine_with_drugs(), jobs=tmp_path / "jobs") as client:
        files = {"file": ("m.csv", content.encode())}
        made = await client.post(
            f"/predict/file?{query}", files=files, headers={"prefer": "respond-async"}
        )
        place = made.headers["location"]
        for _ in range(300):
            state = (await client.get(place)).json()
            if state["state"] not in ("queued", "running"):
                break
            await asyncio.sleep(0.1)
        result = await client.get(f"{place}/result")
    assert state["state"] == "done", state
    header, row = rows(result.text)
    assert header[-2:] == ["bbbp.p_np percentile among drugs", "gmerging_alerts"]
    assert row[-2:] == ["50.0", ""]
    assert row[1] == "'=1+1"


HOSTILE = [
    ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
    ("+1+cmd", "'+1+cmd"),
    ("-2+3", "'-2+3"),
    ("@SUM(A1)", "'@SUM(A1)"),
    ("\tx", "'\tx"),
    ("\rx", "'\rx"),
    ("-1.5", "-1.5"),
    ("+3e-2", "+3e-2"),
    ("-1,5", "-1,5"),
    ("C=O", "C=O"),
    ("", ""),
]


async def test_formulas_are_escaped_if_asked_and_come_back_as_they_are_if_not() -> None:
    lines = "".join(f'C,"{cell}"\n' for cell, _ in HOSTILE)
    content = f"smiles,=evil()\n{lines}=O,x\n"
    plain = rows((await sent("id_field=smiles", content)).text)
    assert [row[2] for row in plain] == ["=evil()", *(cell for cell, _ in HOSTILE), "x"]
    assert plain[-1][:2] == ["=O", "=O"]
    safe = rows((await sent("escape_formulas=true&id_field=smiles", content)).text)
    assert [row[2] for row in safe] == ["'=evil()", *(cell for _, cell in HOSTILE), "x"]
    assert safe[-1][:2] == ["'=O", "'=O"]
    assert [row[5:] for row in safe] == [row[5:] for row in plain], "numbers stay"


async def test_only_csv_has_formulas() -> None:
    response = await sent("escape_formulas=true&output=ndjson")
    check_problem(response, 422, "invalid_request")
