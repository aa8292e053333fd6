"""Files over HTTP: `POST /predict/file`."""

import csv
import gzip
import io
import json
import re
import tempfile
import urllib.parse
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from rdkit import Chem

from service.formats import molecule_files as files
from tests.service.doubles import check_problem, serving
from tests.service.formats.test_molecule_files import sdf

pytestmark = pytest.mark.anyio


@dataclass(frozen=True)
class Answer:
    """What comes back for a file."""

    status: int
    headers: httpx.Headers
    text: str

    @property
    def rows(self) -> list[list[str]]:
        return list(csv.reader(io.StringIO(self.text)))

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]

    @property
    def detail(self) -> str:
        return str(json.loads(self.text)["detail"])


async def ask(
    name: str,
    content: str | bytes,
    query: str = "",
    data: dict[str, Any] | None = None,
    **settings: object,
) -> Answer:
    sent = content.encode() if isinstance(content, str) else content
    async with serving(**settings) as client:
        path = f"/predict/file?{query}" if query else "/predict/file"
        got = await client.post(path, files={"file": (name, sent)}, data=data or {})
    return Answer(got.status_code, got.headers, got.text)


async def test_csv_in_csv_out() -> None:
    content = 'name,smiles,extra\na,OCC,"1,5"\nb,C1,\nc,C,z\nd\n'
    async with serving() as client:
        response = await client.post(
            "/predict/file?tasks=clintox&tasks=bbbp", files={"file": ("m.csv", content)}
        )
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(response.text)))
    assert list(rows[0]) == [
        "name",
        "smiles",
        "extra",
        "gmerging_smiles",
        "gmerging_error",
        "bbbp.p_np",
        "clintox.FDA_APPROVED",
        "clintox.CT_TOX",
    ]
    assert [
        (row["name"], row["smiles"], row["gmerging_smiles"], row["bbbp.p_np"]) for row in rows
    ] == [
        ("a", "OCC", "CCO", "0.25"),
        ("b", "C1", "", ""),
        ("c", "C", "C", "0.5"),
        ("d", "", "", ""),
    ]
    assert rows[0]["extra"] == "1,5"
    assert [row["gmerging_error"].split(":")[0] for row in rows] == [
        "",
        "smiles_syntax",
        "",
        "empty_smiles",
    ]
    assert response.headers["x-file-encoding"] == "utf-8"
    assert response.headers["x-smiles-column"] == "smiles"


async def test_cells_with_line_ends_of_any_kind_come_back() -> None:
    content = 'smiles,note\nC,"a\rb"\nC,"a\nb"\nC,"a\r\nb"\nC,ab\n'
    answer = await ask("m.csv", content, "tasks=bbbp")
    assert [row[1] for row in answer.rows[1:]] == ["a\rb", "a\nb", "a\r\nb", "ab"]
    assert len(list(csv.reader(io.StringIO(answer.text, newline="")))) == 5
    assert "C,ab,C" in answer.text


async def test_sdf_in_ndjson_out() -> None:
    async with serving() as client:
        response = await client.post(
            "/predict/file?tasks=bbbp&output=ndjson", files={"file": ("m.sdf", sdf("CCO", "C"))}
        )
        named = await client.post(
            "/predict/file?tasks=bbbp&output=ndjson&format=sdf",
            files={"file": ("m", sdf("CCO", "C"))},
        )
    assert response.text == named.text
    assert [json.loads(line) for line in response.text.splitlines()] == [
        {
            "index": 0,
            "smiles": "CCO",
            "tasks": {"bbbp": {"p_np": 0.25}},
            "row": {"name": "m0", "score": "$5"},
        },
        {
            "index": 1,
            "smiles": "C",
            "tasks": {"bbbp": {"p_np": 0.5}},
            "row": {"name": "m1", "score": "$5"},
        },
    ]


@pytest.mark.parametrize(
    ("name", "content", "query", "code"),
    [
        ("m.xlsx", "x", "", "invalid_file"),
        ("m.csv", "a,b\n", "", "invalid_file"),
        ("m.smi", "C", "tasks=nope", "unknown_task"),
        ("m.smi", "C", "format=pdf", "invalid_request"),
    ],
)
async def test_wrong_file(name: str, content: str, query: str, code: str) -> None:
    async with serving() as client:
        response = await client.post(f"/predict/file?{query}", files={"file": (name, content)})
        assert (response.status_code, response.json()["code"]) == (422, code)
        nothing = await client.post("/predict/file", content=b"x")
    assert check_problem(nothing, 422, "invalid_request").detail == "#/file: Field required"


async def test_large_file_is_refused() -> None:
    async with serving(max_file_bytes=2000, max_body_bytes=1024) as client:
        fitting = await client.post("/predict/file", files={"file": ("m.smi", "C\n" * 600)})
        assert len(fitting.text.splitlines()) == 601
        response = await client.post("/predict/file", files={"file": ("m.smi", "C\n" * 1000)})
    assert (response.status_code, response.json()["limit"]) == (413, {"max_file_bytes": 2000})


async def test_empty_file_has_an_empty_answer() -> None:
    async with serving() as client:
        assert (
            await client.post("/predict/file?tasks=bbbp", files={"file": ("m.smi", "")})
        ).text == "smiles,name,gmerging_smiles,gmerging_error,bbbp.p_np\n"


async def test_a_quoted_empty_cell_keeps_its_row() -> None:
    answer = await ask("m.csv", 'smiles\nCCO\n""\nc1ccccc1O\n', "tasks=bbbp")
    assert [(row[0], row[1], row[2][:12]) for row in answer.rows[1:]] == [
        ("CCO", "CCO", ""),
        ("", "", "empty_smiles"),
        ("c1ccccc1O", "Oc1ccccc1", ""),
    ]


@pytest.mark.parametrize(
    ("name", "content", "encoding", "header", "own"),
    [
        ("m.csv", "smiles,Säure\nCCO,ä\n".encode("cp1252"), "cp1252", "Säure", "ä"),
        ("m.csv", "smiles,Säure\nCCO,ä\n".encode("utf-8-sig"), "utf-8", "Säure", "ä"),
        ("m.txt", "smiles\tSäure\r\nCCO\tä\r\n".encode("utf-16"), "utf-16", "Säure", "ä"),
        ("m.smi", "smiles\tSäure\nCCO\tä\n".encode(), "utf-8", "Säure", "ä"),
        ("m.smi", "CCO\tä\n".encode("cp1252"), "cp1252", "name", "ä"),
        ("m.csv", b'smiles,"Conc.\n(uM)"\r\nCCO,1\r\n', "utf-8", "Conc.\n(uM)", "1"),
        ("m.csv", b"sep=;\r\nsmiles;n\r\nCCO;1,5\r\n", "utf-8", "n", "1,5"),
        ("m.csv", b'smiles;"IC50, nM, 24h, pH 7"\nCCO;"1,5"\n', "utf-8", None, "1,5"),
        ("m.csv", b"smiles,n,x\nCCO,1\n", "utf-8", "n", "1"),
        ("m.csv", b"smiles,n\nCCO,1,,\n", "utf-8", "n", "1"),
    ],
)
async def test_tables_of_all_kinds(
    name: str, content: bytes, encoding: str, header: str | None, own: str
) -> None:
    answer = await ask(name, content, "tasks=bbbp&output=csv")
    assert (answer.status, answer.headers["x-file-encoding"]) == (200, encoding)
    names, row = answer.rows
    assert names[:2] == ["smiles", header or "IC50, nM, 24h, pH 7"]
    assert (row[:2], row[-3], row[-2]) == (["CCO", own], "CCO", "")


async def test_every_cell_of_columns_with_one_name_comes_back() -> None:
    content = "smiles,Conc,Conc,\nCCO,1,2,x\n"
    answer = await ask("m.csv", content, "tasks=bbbp&output=ndjson")
    assert answer.lines[0]["row"] == {"smiles": "CCO", "Conc": "1", "Conc.1": "2", "": "x"}
    assert (await ask("m.csv", content, "tasks=bbbp")).rows[0][:4] == ["smiles", "Conc", "Conc", ""]


async def test_column_by_content_is_said() -> None:
    answer = await ask("m.csv", "Molecule,Ligand SMILES\nCHEMBL25,CCO\n", "tasks=bbbp")
    assert answer.rows[1][2] == "CCO"
    assert answer.headers["x-smiles-column"] == "Ligand%20SMILES"


@pytest.mark.parametrize("query", ["id_field=ID", "id_field=ID&output=ndjson"])
async def test_ids_of_an_sdf(query: str) -> None:
    block = Chem.MolToMolBlock(Chem.MolFromSmiles("CCO"))
    content = f"{block}>  <ID>  (1)\nZ 1\n\n>  <Note>\nfirst\nsecond\n\n$$$$\n"
    content += f"{block}> <MW> \n46.07\n\n>  25 <ID>\nZ2\n\n$$$$\n{block}$$$$\n"
    answer = await ask("m.sdf.gz", gzip.compress(content.encode()), f"tasks=bbbp&{query}")
    if "ndjson" in query:
        assert [line["id"] for line in answer.lines] == ["Z 1", "Z2", ""]
        assert [line["row"] for line in answer.lines] == [
            {"name": "", "ID": "Z 1", "Note": "first\nsecond"},
            {"name": "", "ID": "Z2", "MW": "46.07"},
            {"name": ""},
        ]
        assert list(answer.lines[0]) == ["index", "id", "smiles", "tasks", "row"]
    else:
        names, *rows = answer.rows
        assert names[:5] == ["id", "name", "ID", "Note", "MW"]
        assert [row[:5] for row in rows] == [
            ["Z 1", "", "Z 1", "first\nsecond", ""],
            ["Z2", "", "Z2", "", "46.07"],
            ["", "", "", "", ""],
        ]
        assert [row[5] for row in rows] == ["CCO"] * 3


async def test_id_of_a_table_and_of_lines() -> None:
    table = await ask("m.csv", "id,smiles\n7,CCO\n", "tasks=bbbp&output=ndjson&id_field=id")
    assert (table.lines[0]["id"], table.lines[0]["row"]) == ("7", {"id": "7", "smiles": "CCO"})
    lines = await ask("m.smi", "CCO Z1\nC\n", "tasks=bbbp&id_field=name")
    assert [row[:4] for row in lines.rows] == [
        ["id", "smiles", "name", "gmerging_smiles"],
        ["Z1", "CCO", "Z1", "CCO"],
        ["", "C", "", "C"],
    ]


@pytest.mark.parametrize(
    ("name", "content", "query", "message"),
    [
        ("m.csv", "ID,smiles\n", "id_field=Id", "id_field: got columns 'ID, smiles', .*'ID'"),
        ("m.sdf", "> <x>\n", "id_field=nam", "id_field: got columns 'name, x', .*mean 'name'"),
        ("m.sdf", "", "smiles_column=x", "got smiles_column 'x' for an SDF file"),
        ("m.smi", "C\n", "smiles_column=x", "got smiles_column 'x' for lines of SMILES"),
        ("m.csv", "smiles\n", "smiles_column=Smiles", "expected 'Smiles', did you mean 'smiles'"),
        ("m.csv", b"PK\x03\x04", "", "got an archive or an Excel workbook"),
        ("m.csv.gz", gzip.compress(b"smiles\nC\n", mtime=0)[:-3], "", "got a damaged gzip file"),
        ("m.xlsx.gz", b"", "", "got a file called 'm.xlsx.gz'"),
    ],
)
async def test_what_cannot_be_done_is_said(
    name: str, content: str | bytes, query: str, message: str
) -> None:
    answer = await ask(name, content, query)
    assert answer.status == 422
    assert re.search(message, answer.detail), answer.detail


@pytest.mark.parametrize("name", ["m.csv.gz", "m.CSV.GZ", "m.csv"])
async def test_gzip(name: str) -> None:
    packed = gzip.compress(b"smiles,id\nCCO,1\n") + gzip.compress(b"CC,2\n")
    answer = await ask(name, packed, "tasks=bbbp")
    assert [row[:3] for row in answer.rows[1:]] == [["CCO", "1", "CCO"], ["CC", "2", "CC"]]
    plain = await ask("m.smi.gz", "CCO\n", "tasks=bbbp")
    assert plain.rows[1][0] == "CCO"


async def test_gzip_bomb_is_too_large_and_takes_no_space(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []

    class Counted(tempfile.SpooledTemporaryFile):  # type: ignore[type-arg]
        def write(self, data: Any) -> int:
            written.append(len(data))
            return super().write(data)

    monkeypatch.setattr(files, "SpooledTemporaryFile", Counted)
    bomb = gzip.compress(b"smiles\n" + b"C\n" * 20_000_000)
    answer = await ask("m.csv.gz", bomb, "tasks=bbbp", max_file_bytes=3_000_000)
    assert (answer.status, json.loads(answer.text)["limit"]) == (413, {"max_file_bytes": 3_000_000})
    assert sum(written) <= 3_000_000


async def test_options_in_the_form() -> None:
    content = "Name,Struct,smiles\na,CCO,CC\n"
    form = {
        "output": "ndjson",
        "tasks": ["bbbp", "clintox"],
        "smiles_column": "Struct",
        "id_field": "Name",
        "format": "csv",
        "routing": "own",
        "model": "dummy",
    }
    by_form = await ask("m", content, data=form)
    query = urllib.parse.urlencode(form, doseq=True)
    by_query = await ask("m", content, query)
    assert by_form.status == 200
    assert by_form.text == by_query.text
    assert by_form.lines[0]["smiles"] == "CCO"
    assert list(by_form.lines[0]["tasks"]) == ["bbbp", "clintox"]


@pytest.mark.parametrize(
    ("data", "query", "message"),
    [
        ({"outptu": "ndjson"}, "", "#/outptu: got an unknown field, .*did you mean 'output'"),
        ({"task": "bbbp"}, "", "#/task: got an unknown field, .*did you mean 'tasks'"),
        ({"output": "pdf"}, "", "#/output: "),
        ({"tasks": "nope"}, "", "got unknown task 'nope'"),
        ({"tasks": ["bbbp", "bbbp"]}, "", "got a task twice"),
        ({"output": ["csv", "ndjson"]}, "", "#/output: got it 2 times, expected one"),
        ({"output": ""}, "", "#/output: got an empty field"),
        ({"output": "csv"}, "output=csv", "#/output: got it in the form and in the query"),
    ],
)
async def test_wrong_form(data: dict[str, Any], query: str, message: str) -> None:
    answer = await ask("m.smi", "C\n", query, data)
    assert answer.status == 422
    assert re.search(message, answer.detail), answer.detail


async def test_one_file_at_a_time() -> None:
    two = [("file", ("a.smi", "C\n")), ("file", ("b.smi", "CC\n"))]
    other = {"file": ("a.smi", "C\n"), "files": ("b.smi", "CC\n")}
    async with serving() as client:
        twice = await client.post("/predict/file", files=two)
        wrong = await client.post("/predict/file", files=other)
        text = await client.post("/predict/file", data={"file": "C"})
    assert "#/file: got a field of text, expected a file" in text.json()["detail"]
    assert (twice.status_code, wrong.status_code) == (422, 422)
    assert "#/file: got 2 files, expected one" in twice.json()["detail"]
    assert "did you mean 'file'" in wrong.json()["detail"]
