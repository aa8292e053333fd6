import csv
import io
import json

import pytest
from rdkit import Chem

from models.errors import InvalidInputError
from service.files import FileFormat, FileKind, kind_of, open_file
from service.reading import MolBlock, Unreadable
from service.streams import Record
from tests.service.doubles import serving


def opened(content: str | bytes, kind: FileKind, column: str | None = None) -> tuple[tuple[str, ...], list[Record]]:
    file = open_file(io.BytesIO(content.encode() if isinstance(content, str) else content), FileFormat(kind, column))
    return file.columns, list(file.records)


def shown(records: list[Record]) -> list[object]:
    return [record.source.code if isinstance(record.source, Unreadable) else record.source for record in records]


@pytest.mark.parametrize(
    ("name", "kind"), [("a.csv", "csv"), ("B.TSV", "tsv"), ("x.y.smi", "smi"), ("m.SDF", "sdf"), ("m.mol", "sdf"), ("s.txt", "smi")]
)
def test_kind_by_name(name: str, kind: str) -> None:
    assert kind_of(name) == kind


@pytest.mark.parametrize("name", ["", "a", "a.xlsx", "csv"])
def test_name_that_says_nothing(name: str) -> None:
    with pytest.raises(InvalidInputError, match=r"expected an ending of \.csv"):
        kind_of(name)


@pytest.mark.parametrize(("separator", "kind"), [(",", "csv"), (";", "csv"), ("\t", "csv"), ("\t", "tsv")])
def test_table(separator: str, kind: FileKind) -> None:
    text = '\ufeffname,Smiles,note\r\na,CCO,\r\n\r\nb,C,"x, y"\r\n'.replace(",", separator).replace(f"x{separator}", "x,")
    columns, records = opened(text, kind)
    assert columns == ("name", "Smiles", "note")
    assert shown(records) == ["CCO", "C"]
    assert records[1].own == ("b", "C", "x, y")


def test_column_by_name() -> None:
    assert shown(opened("smiles,product\nC,CC\n", "csv", "product")[1]) == ["CC"]
    with pytest.raises(InvalidInputError, match="expected 'nope'"):
        opened("smiles\nC\n", "csv", "nope")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "got no text, expected a header"),
        ("\n\n", "got no text, expected a header"),
        ("a,b\n1,2\n", "expected one of smiles"),
        ("CCO\nCC\n", "the header is missing"),
    ],
)
def test_table_without_smiles(content: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        opened(content, "csv")


def test_bad_rows_are_marked_and_none_is_lost() -> None:
    columns, records = opened('id,smiles\n1,C\n2\n3,C,C\n4,"C\n5,C"\n6,CC\n', "csv")
    assert shown(records) == ["C", "", "invalid_row", "C\n5,C", "CC"]
    assert records[2].source == Unreadable(
        "invalid_row",
        "line 4: got 3 cells, expected 2, one per column of the header",
    )
    assert all(len(record.own) == len(columns) for record in records)


def test_field_and_line_that_are_too_long() -> None:
    long = "C" * 200_000
    _, records = opened(f'smiles\nC\n{long}\nCC\n"{long[:90_000]}\n{long[:90_000]}"\nCCC\n', "csv")
    two_lines = f"{long[:90_000]}\n{long[:90_000]}"
    assert shown(records) == ["C", "invalid_row", "CC", two_lines, "CCC"]


def test_line_ends_of_old() -> None:
    assert shown(opened("smiles,n\rC,1\rCC,2\r", "csv")[1]) == ["C", "CC"]


def test_not_utf8_is_still_a_table() -> None:
    assert shown(opened(b"smiles,name\nC,caf\xe9\n", "csv")[1]) == ["C"]


def test_smi() -> None:
    columns, records = opened("CCO ethanol and more\n\nC\n\tCC\tx\n", "smi")
    assert columns == ("smiles", "name")
    assert [(record.source, record.own) for record in records] == [("CCO", ("CCO", "ethanol and more")), ("C", ("C", "")), ("CC", ("CC", "x"))]


def sdf(*smiles: str) -> str:
    blocks = []
    for k, text in enumerate(smiles):
        mol = Chem.MolFromSmiles(text)
        mol.SetProp("_Name", f"m{k}")
        blocks.append(Chem.MolToMolBlock(mol) + "> <score>\n$5\n\n$$$$\n")
    return "".join(blocks)


def test_sdf() -> None:
    columns, records = opened(sdf("CCO", "c1ccccc1") + "junk\n$$$$\n" + sdf("C").removesuffix("$$$$\n"), "sdf")
    assert columns == ("name", "score")
    assert [record.own for record in records] == [("m0", "$5"), ("m1", "$5"), ("junk", None), ("m0", "$5")]
    assert all(isinstance(record.source, MolBlock) for record in records)


def test_block_without_end() -> None:
    (record, last) = opened("x\n" * 30_000 + "$$$$\n" + sdf("C"), "sdf")[1]
    assert isinstance(record.source, Unreadable)
    assert isinstance(last.source, MolBlock)


# --- over HTTP ---


@pytest.mark.anyio
async def test_csv_in_csv_out() -> None:
    content = 'name,smiles,extra\na,OCC,"1,5"\nb,C1,\nc,C,z\nd\n'
    async with serving() as client:
        response = await client.post("/predict/file?tasks=clintox&tasks=bbbp", files={"file": ("m.csv", content)})
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(response.text)))
    assert list(rows[0]) == ["name", "smiles", "extra", "gmerging_smiles", "gmerging_error", "bbbp.p_np", "clintox.FDA_APPROVED", "clintox.CT_TOX"]
    assert [(row["name"], row["smiles"], row["gmerging_smiles"], row["bbbp.p_np"]) for row in rows] == [
        ("a", "OCC", "CCO", "0.25"),
        ("b", "C1", "", ""),
        ("c", "C", "C", "0.5"),
        ("d", "", "", ""),
    ]
    assert rows[0]["extra"] == "1,5"
    assert [row["gmerging_error"].split(":")[0] for row in rows] == ["", "smiles_syntax", "", "empty_smiles"]
    assert response.headers["x-file-encoding"] == "utf-8"
    assert response.headers["x-smiles-column"] == "smiles"


@pytest.mark.anyio
async def test_sdf_in_ndjson_out() -> None:
    async with serving() as client:
        response = await client.post("/predict/file?tasks=bbbp&output=ndjson", files={"file": ("m.sdf", sdf("CCO", "C"))})
        named = await client.post("/predict/file?tasks=bbbp&output=ndjson&format=sdf", files={"file": ("m", sdf("CCO", "C"))})
    assert response.text == named.text
    assert [json.loads(line) for line in response.text.splitlines()] == [
        {"index": 0, "smiles": "CCO", "tasks": {"bbbp": {"p_np": 0.25}}, "row": {"name": "m0", "score": "$5"}},
        {"index": 1, "smiles": "C", "tasks": {"bbbp": {"p_np": 0.5}}, "row": {"name": "m1", "score": "$5"}},
    ]


@pytest.mark.anyio
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
        assert (await client.post("/predict/file", content=b"x")).status_code == 422


@pytest.mark.anyio
async def test_large_file_is_refused() -> None:
    async with serving(max_file_bytes=2000, max_body_bytes=1024) as client:
        assert (await client.post("/predict/file", files={"file": ("m.smi", "C\n" * 600)})).status_code == 200
        response = await client.post("/predict/file", files={"file": ("m.smi", "C\n" * 1000)})
    assert (response.status_code, response.json()["limit"]) == (413, {"max_file_bytes": 2000})


@pytest.mark.anyio
async def test_empty_file_has_an_empty_answer() -> None:
    async with serving() as client:
        assert (
            await client.post("/predict/file?tasks=bbbp", files={"file": ("m.smi", "")})
        ).text == "smiles,name,gmerging_smiles,gmerging_error,bbbp.p_np\n"
