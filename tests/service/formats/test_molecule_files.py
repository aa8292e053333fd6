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

from models.errors import InvalidInputError
from service.bulk import flow
from service.core.reading import ItemFailure, MolBlock, Record
from service.formats import molecule_files as files
from service.formats.molecule_files import FileFormat, FileKind, kind_of, open_file
from tests.service.doubles import serving


def opened(
    content: str | bytes, kind: FileKind, column: str | None = None
) -> tuple[tuple[str, ...], list[Record]]:
    file = open_file(
        io.BytesIO(content.encode() if isinstance(content, str) else content),
        FileFormat(kind, column),
    )
    return file.columns, list(file.records)


def shown(records: list[Record]) -> list[object]:
    return [
        record.source.code if isinstance(record.source, ItemFailure) else record.source
        for record in records
    ]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.csv", "csv"),
        ("B.TSV", "tsv"),
        ("x.y.smi", "smi"),
        ("m.SDF", "sdf"),
        ("m.mol", "sdf"),
        ("s.txt", "smi"),
    ],
)
def test_kind_by_name(name: str, kind: str) -> None:
    assert kind_of(name) == kind


@pytest.mark.parametrize("name", ["", "a", "a.xlsx", "csv"])
def test_name_that_says_nothing(name: str) -> None:
    with pytest.raises(InvalidInputError, match=r"expected an ending of \.csv"):
        kind_of(name)


@pytest.mark.parametrize(
    ("separator", "kind"), [(",", "csv"), (";", "csv"), ("\t", "csv"), ("\t", "tsv")]
)
def test_table(separator: str, kind: FileKind) -> None:
    text = '\ufeffname,Smiles,note\r\na,CCO,\r\n\r\nb,C,"x, y"\r\n'.replace(",", separator).replace(
        f"x{separator}", "x,"
    )
    columns, records = opened(text, kind)
    assert columns == ("name", "Smiles", "note")
    assert shown(records) == ["CCO", "C"]
    assert records[1].own == ("b", "C", "x, y")


@pytest.mark.parametrize(
    "content",
    ["smiles,name\nCCO,a\n", "name;smiles\na;CCO\n", "smiles\nCCO\n"],
)
def test_tsv_without_tabs(content: str) -> None:
    assert shown(opened(content, "tsv")[1]) == ["CCO"]
    assert opened("smiles\ta,b\nCCO\t1,2\n", "tsv")[1][0].own == ("CCO", "1,2")


@pytest.mark.parametrize("header", ["one\n  -ours-\n\n", "one\n", ""])
def test_sdf_by_another_name(header: str) -> None:
    lines = named("").split("\n", 3)[3]
    columns, records = opened(f"{header}{lines}> <ID>\nZ1\n\n$$$$\n" + named("two"), "smi")
    assert columns == ("name", "ID")
    assert [isinstance(record.source, MolBlock) for record in records] == [True, True]
    table = f'id,structure\na,"{named("one")}"\n'
    assert opened(table, "smi")[0] == ("id", "structure")


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
    assert records[2].source == ItemFailure(
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
    assert [(record.source, record.own) for record in records] == [
        ("CCO", ("CCO", "ethanol and more")),
        ("C", ("C", "")),
        ("CC", ("CC", "x")),
    ]


def sdf(*smiles: str) -> str:
    blocks = []
    for k, text in enumerate(smiles):
        mol = Chem.MolFromSmiles(text)
        mol.SetProp("_Name", f"m{k}")
        blocks.append(Chem.MolToMolBlock(mol) + "> <score>\n$5\n\n$$$$\n")
    return "".join(blocks)


def test_sdf() -> None:
    last = sdf("C").removesuffix("$$$$\n")
    columns, records = opened(sdf("CCO", "c1ccccc1") + "junk\n$$$$\n" + last, "sdf")
    assert columns == ("name", "score")
    assert [record.own for record in records] == [
        ("m0", "$5"),
        ("m1", "$5"),
        ("junk", None),
        ("m0", "$5"),
    ]
    assert all(isinstance(record.source, MolBlock) for record in records)


def test_block_without_end() -> None:
    record, last = opened("x\n" * 30_000 + "$$$$\n" + sdf("C"), "sdf")[1]
    assert isinstance(record.source, ItemFailure)
    assert isinstance(last.source, MolBlock)


# --- over HTTP ---


@pytest.mark.anyio
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


@pytest.mark.anyio
async def test_cells_with_line_ends_of_any_kind_come_back() -> None:
    content = 'smiles,note\nC,"a\rb"\nC,"a\nb"\nC,"a\r\nb"\nC,ab\n'
    answer = await ask("m.csv", content, "tasks=bbbp")
    assert [row[1] for row in answer.rows[1:]] == ["a\rb", "a\nb", "a\r\nb", "ab"]
    assert len(list(csv.reader(io.StringIO(answer.text, newline="")))) == 5
    assert "C,ab,C" in answer.text


@pytest.mark.anyio
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
        assert (
            await client.post("/predict/file", files={"file": ("m.smi", "C\n" * 600)})
        ).status_code == 200
        response = await client.post("/predict/file", files={"file": ("m.smi", "C\n" * 1000)})
    assert (response.status_code, response.json()["limit"]) == (413, {"max_file_bytes": 2000})


@pytest.mark.anyio
async def test_empty_file_has_an_empty_answer() -> None:
    async with serving() as client:
        assert (
            await client.post("/predict/file?tasks=bbbp", files={"file": ("m.smi", "")})
        ).text == "smiles,name,gmerging_smiles,gmerging_error,bbbp.p_np\n"


# --- files as people bring them ---

ASPIRIN_BLOCK = Chem.MolToMolBlock(Chem.MolFromSmiles("CC(=O)Oc1ccccc1C(=O)O"))
INCHI = "InChI=1S/C2H6O/c1-2-3/h3H,2H2,1H3"


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


@pytest.mark.anyio
async def test_a_quoted_empty_cell_keeps_its_row() -> None:
    answer = await ask("m.csv", 'smiles\nCCO\n""\nc1ccccc1O\n', "tasks=bbbp")
    assert [(row[0], row[1], row[2][:12]) for row in answer.rows[1:]] == [
        ("CCO", "CCO", ""),
        ("", "", "empty_smiles"),
        ("c1ccccc1O", "Oc1ccccc1", ""),
    ]


@pytest.mark.anyio
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
    name: str,
    content: bytes,
    encoding: str,
    header: str | None,
    own: str,
) -> None:
    answer = await ask(name, content, "tasks=bbbp&output=csv")
    assert (answer.status, answer.headers["x-file-encoding"]) == (200, encoding)
    names, row = answer.rows
    assert names[:2] == ["smiles", header or "IC50, nM, 24h, pH 7"]
    assert (row[:2], row[-3], row[-2]) == (["CCO", own], "CCO", "")


@pytest.mark.anyio
async def test_every_cell_of_columns_with_one_name_comes_back() -> None:
    content = "smiles,Conc,Conc,\nCCO,1,2,x\n"
    answer = await ask("m.csv", content, "tasks=bbbp&output=ndjson")
    assert answer.lines[0]["row"] == {"smiles": "CCO", "Conc": "1", "Conc.1": "2", "": "x"}
    assert (await ask("m.csv", content, "tasks=bbbp")).rows[0][:4] == ["smiles", "Conc", "Conc", ""]


@pytest.mark.anyio
async def test_column_by_content_is_said() -> None:
    answer = await ask("m.csv", "Molecule,Ligand SMILES\nCHEMBL25,CCO\n", "tasks=bbbp")
    assert answer.rows[1][2] == "CCO"
    assert answer.headers["x-smiles-column"] == "Ligand%20SMILES"


@pytest.mark.parametrize("kind", ["csv", "smi"])
def test_texts_of_other_kinds_are_handed_on_whole(kind: FileKind) -> None:
    content = f'id,structure smiles\n1,"{ASPIRIN_BLOCK}"\n2,"{INCHI}"\n3,CCO |$;;HO$|\n'
    _, records = opened(content, kind)
    assert shown(records) == [ASPIRIN_BLOCK, INCHI, "CCO |$;;HO$|"]


@pytest.mark.parametrize("header", ["", "smiles\tid\tType\n"])
def test_cxsmiles(header: str) -> None:
    content = header + "C[C@H](N)C(=O)O |&1:1,r|\tIS_01\tM\nCCN\tIS_03\tS\n"
    columns, records = opened(content, kind_of("a.cxsmiles"))
    assert shown(records) == ["C[C@H](N)C(=O)O |&1:1,r|", "CCN"]
    assert columns == (("smiles", "id", "Type") if header else ("smiles", "name"))
    assert records[1].own == (("CCN", "IS_03", "S") if header else ("CCN", "IS_03\tS"))


@pytest.mark.anyio
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


@pytest.mark.anyio
async def test_id_of_a_table_and_of_lines() -> None:
    table = await ask("m.csv", "id,smiles\n7,CCO\n", "tasks=bbbp&output=ndjson&id_field=id")
    assert (table.lines[0]["id"], table.lines[0]["row"]) == ("7", {"id": "7", "smiles": "CCO"})
    lines = await ask("m.smi", "CCO Z1\nC\n", "tasks=bbbp&id_field=name")
    assert [row[:4] for row in lines.rows] == [
        ["id", "smiles", "name", "gmerging_smiles"],
        ["Z1", "CCO", "Z1", "CCO"],
        ["", "C", "", "C"],
    ]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "content", "query", "message"),
    [
        ("m.csv", "ID,smiles\n", "id_field=Id", "id_field: got columns 'ID, smiles', .*'ID'"),
        ("m.sdf", "> <x>\n", "id_field=nam", "id_field: got columns 'name, x', .*mean 'name'"),
        ("m.sdf", "", "smiles_column=x", "got smiles_column 'x' for an SDF file"),
        ("m.smi", "C\n", "smiles_column=x", "got smiles_column 'x' for lines of SMILES"),
        ("m.csv", "smiles\n", "smiles_column=Smiles", "expected 'Smiles', did you mean 'smiles'"),
        ("m.csv", b"PK\x03\x04", "", "got an archive or an Excel workbook"),
        ("m.csv.gz", gzip.compress(b"smiles\nC\n")[:-3], "", "got a damaged gzip file"),
        ("m.xlsx.gz", b"", "", "got a file called 'm.xlsx.gz'"),
    ],
)
async def test_what_cannot_be_done_is_said(
    name: str,
    content: str | bytes,
    query: str,
    message: str,
) -> None:
    answer = await ask(name, content, query)
    assert answer.status == 422
    assert re.search(message, answer.detail), answer.detail


# --- SDF ---


def named(name: str, smiles: str = "CCO") -> str:
    """A `.mol` file."""
    mol = Chem.MolFromSmiles(smiles)
    mol.SetProp("_Name", name)
    return str(Chem.MolToMolBlock(mol))


def titles(content: str) -> list[tuple[str, bool]]:
    _, records = opened(content, "sdf")
    return [(record.own[0], isinstance(record.source, MolBlock)) for record in records]


@pytest.mark.parametrize("between", ["", "\n", "\n\n"])
def test_files_of_mol_files(between: str) -> None:
    content = between.join([named("one"), named("two", "C"), named("")])
    assert titles(content) == [("one", True), ("two", True), ("", True)]
    _, records = opened(content, "sdf")
    assert [record.source for record in records[:2]] == [
        MolBlock(named("one")),
        MolBlock(named("two", "C")),
    ]


def test_mol_files_without_a_last_line_end() -> None:
    content = "".join(named(name).removesuffix("\n") for name in ("one", "two"))
    assert "M  ENDtwo" in content
    assert titles(content) == [("one", True), ("two", True)]


def test_a_file_without_its_last_line_before_another() -> None:
    content = named("one") + "> <ID>\nZ1\n\n" + named("two") + "> <ID>\nZ2\n\n$$$$\n"
    columns, records = opened(content, "sdf")
    assert columns == ("name", "ID")
    assert [record.own for record in records] == [("one", "Z1"), ("two", "Z2")]


def test_blocks_that_cannot_be_told_apart_are_an_error_each() -> None:
    old = named("two").replace("V2000", "     ")
    assert titles(named("one") + old + named("three")) == [
        ("one", True),
        ("", False),
        ("three", True),
    ]


def test_block_whose_end_is_missing() -> None:
    block = named("one").replace("M  END\n", "")
    assert titles(block + named("two")) == [("one", True), ("two", True)]
    columns, records = opened(block + "> <ID>\nZ1\n\n$$$$\n", "sdf")
    assert (columns, records[0].own) == (("name", "ID"), ("one", "Z1"))


def test_a_mol_block_inside_a_data_field_is_no_record() -> None:
    content = named("one") + "> <POSE>\n" + named("pose") + "\n> <ID>\nZ1\n\n$$$$\n"
    columns, (record,) = opened(content, "sdf")
    assert columns == ("name", "POSE", "ID")
    assert record.own == ("one", named("pose").strip("\n"), "Z1")


def test_v3000_blocks() -> None:
    mol = Chem.MolFromSmiles("CCO")
    block = Chem.MolToV3KMolBlock(mol)
    assert titles(block + block) == [("", True), ("", True)]


def test_fields_without_blank_lines_and_twice() -> None:
    content = named("one") + "> <A>\n1\n> <B>\n2\n\n3\n\n> <A>\n4\n$$$$\n"
    columns, (record,) = opened(content, "sdf")
    assert (columns, record.own) == (("name", "A", "B"), ("one", "1\n4", "2\n\n3"))


def test_only_the_line_of_four_dollars_ends_a_record() -> None:
    content = named("$$$$weird") + "> <PRICE>\n$$$$ high\n\n$$$$  \n" + named("two")
    columns, records = opened(content, "sdf")
    assert columns == ("name", "PRICE")
    assert [record.own for record in records] == [("$$$$weird", "$$$$ high"), ("two", None)]


def test_headers_of_fields() -> None:
    fields = "> 25 (MD-1) <A> DT1\n> see <ref>\n  \n\n> DT12\nx\n\n> <>\ny\n \n> (an) odd <B>\nz\n"
    columns, (record,) = opened(named("one") + fields + "$$$$\n", "sdf")
    assert columns == ("name", "A", "DT12", "", "B")
    assert record.own == ("one", "> see <ref>", "x", "y", "z")


def test_values_before_a_block_without_its_header() -> None:
    lines = named("").split("\n", 3)[3]
    content = named("one") + "> <A>\n1\n\n" + lines + "> <A>\n2\n\nx\n" + lines
    columns, records = opened(content, "sdf")
    assert columns == ("name", "A")
    assert [record.own for record in records] == [("one", "1"), ("", "2"), ("x", None)]
    assert all(isinstance(record.source, MolBlock) for record in records)


@pytest.mark.parametrize("content", ["smiles,n\nCCO,1\nCC,2\n", "<html>\n"])
def test_what_is_no_sdf(content: str) -> None:
    with pytest.raises(InvalidInputError, match=r"got no counts line .* expected an SDF"):
        opened(content, "sdf")


def test_id_field_is_a_data_field_before_it_is_the_title() -> None:
    content = named("title") + "> <ID>\nZ1\n\n> <name>\nfield\n\n$$$$\n"
    file = open_file(io.BytesIO(content.encode()), FileFormat("sdf", id_field="name"))
    assert (file.columns, file.id_column) == (("name", "ID", "name"), 2)
    file = open_file(io.BytesIO(named("title").encode()), FileFormat("sdf", id_field="name"))
    assert file.id_column == 0


def test_a_record_of_fields_alone() -> None:
    columns, records = opened("> <A>\n1\n\n$$$$\n\n$$$$\n" + named("two"), "sdf")
    assert columns == ("name", "A")
    assert shown(records)[:2] == ["mol_block_syntax"] * 2
    assert [record.own for record in records] == [("", "1"), ("", None), ("two", None)]


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("\n\none\n  -ours-  01112713572D\n\n", "one"),
        ("one\n  -ours-  01112713572D\n", "one"),
        ("  -ours-  01112713572D\n\n", ""),
        ("     RDKit          2D\n\n", ""),
        ("", ""),
    ],
)
def test_name_in_a_header_with_more_or_fewer_lines(header: str, name: str) -> None:
    lines = named("").split("\n", 3)[3]
    assert titles(f"{header}{lines}$$$$\n{header}{lines}") == [(name, True)] * 2


def test_too_many_and_too_long_fields() -> None:
    many = named("one") + "".join(f"> <F{k}>\n1\n\n" for k in range(1001)) + "$$$$\n"
    with pytest.raises(InvalidInputError, match="data fields of more than 1000 names"):
        opened(many, "sdf")
    long = "> <A>\n" + "x" * 99 + "\n" * 2
    assert titles(named("one") + long + "y" * 300_000 + "\n$$$$\n" + named("two")) == [
        ("one", False),
        ("two", True),
    ]
    assert titles(named("one") + long * 4000 + "$$$$\n" + named("two")) == [
        ("one", False),
        ("two", True),
    ]


# --- gzip ---


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["m.csv.gz", "m.CSV.GZ", "m.csv"])
async def test_gzip(name: str) -> None:
    packed = gzip.compress(b"smiles,id\nCCO,1\n") + gzip.compress(b"CC,2\n")
    answer = await ask(name, packed, "tasks=bbbp")
    assert [row[:3] for row in answer.rows[1:]] == [["CCO", "1", "CCO"], ["CC", "2", "CC"]]
    plain = await ask("m.smi.gz", "CCO\n", "tasks=bbbp")
    assert plain.rows[1][0] == "CCO"


@pytest.mark.anyio
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


def test_memory_of_a_group_of_long_records() -> None:
    content = "smiles,note\n" + f"C,{'x' * 100_000}\n" * 50
    file = open_file(io.BytesIO(content.encode()), FileFormat("csv"))
    sizes = []
    while group := flow._group(file.records):
        sizes.append(len(group))
    assert sum(sizes) == 50
    assert max(sizes) == 11


# --- the form ---


@pytest.mark.anyio
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


@pytest.mark.anyio
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


@pytest.mark.anyio
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
