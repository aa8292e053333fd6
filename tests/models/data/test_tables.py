"""The reader of tables: files as instruments, spreadsheets, scripts and people write them."""

import csv
import gzip
import io
import tracemalloc
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.tables import (
    LONGEST_LINE,
    LONGEST_RECORD,
    Row,
    Table,
    is_header,
    molecule_column,
    open_stream,
    open_table,
    read_smiles_lines,
    unique_names,
)
from models.errors import InvalidInputError

CELL = "one\n  program\n\n  1  0\n    0.0    0.0    0.0 C   0  0\nM  END\n"


def table(content: str | bytes, delimiter: str | None = None) -> Table:
    return open_table(io.BytesIO(bytes_of(content)), delimiter)


def bytes_of(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


def cells(content: str | bytes, delimiter: str | None = None) -> list[tuple[str, ...]]:
    return [row.cells for row in table(content, delimiter).rows]


def rows_of(*rows: Sequence[str]) -> list[Row]:
    return [Row(k, k + 1, tuple(row), None) for k, row in enumerate(rows, 1)]


# --- records ---


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends(end: str, last: bool) -> None:
    text = end.join(["smiles,n", "CCO,1", "CC,2"]) + (end if last else "")
    found = list(table(text).rows)
    assert [(row.number, row.line, row.cells) for row in found] == [
        (1, 2, ("CCO", "1")),
        (2, 3, ("CC", "2")),
    ]


def test_a_quoted_empty_cell_is_a_record_and_a_blank_line_is_none() -> None:
    found = list(table('smiles\nCCO\n""\n\n  \nc1ccccc1O\n').rows)
    assert [(row.number, row.line, row.cells) for row in found] == [
        (1, 2, ("CCO",)),
        (2, 3, ("",)),
        (3, 6, ("c1ccccc1O",)),
    ]


def test_a_row_of_empty_cells_is_a_record() -> None:
    assert cells("smiles,n\n,\nCC,1\n") == [("", ""), ("CC", "1")]


def test_ragged_rows() -> None:
    found = list(table("smiles,id,comment\nCCO,a\nCCN,b,ok\nCCC,c,ok,\nC,d,ok, ,x\n").rows)
    assert [row.cells for row in found[:3]] == [
        ("CCO", "a", ""),
        ("CCN", "b", "ok"),
        ("CCC", "c", "ok"),
    ]
    assert [row.problem for row in found[:3]] == [None] * 3
    assert found[3].cells == ("C", "d", "ok")
    assert found[3].problem == "got 5 cells, expected 3, one per column of the header"


def test_header_with_quotes_and_line_breaks() -> None:
    read = table('"Compound\nID",smiles,"Conc.\n(uM)"\r\nA-1,CCO,1\r\n')
    assert read.columns == ("Compound\nID", "smiles", "Conc.\n(uM)")
    (row,) = read.rows
    assert (row.number, row.line, row.cells) == (1, 4, ("A-1", "CCO", "1"))


def test_blanks_before_quotes() -> None:
    text = 'id,  "smiles", "a, b"\n1, "CCO", "x, ""y""" \n2,CCN, z"\n3, "C\n4,C,d\n'
    read = table(text)
    assert read.columns == ("id", "smiles", "a, b")
    rows = list(read.rows)
    assert [row.cells for row in rows[:2]] == [("1", "CCO", 'x, "y" '), ("2", "CCN", 'z"')]
    assert [row.problem is None for row in rows] == [True, True, False, True]
    assert table("id, smiles\n1, CCO\n").rows.__next__().cells == ("1", " CCO")


def test_cells_over_many_lines() -> None:
    text = f'id,structure\r\na,"{CELL}"\r\nb,"{CELL}"\r\nc,x\r\n'
    found = list(table(text).rows)
    assert [row.cells for row in found] == [("a", CELL), ("b", CELL), ("c", "x")]
    assert [row.line for row in found] == [2, 9, 16]
    assert {row.problem for row in found} == {None}


def test_index_column_of_pandas_stays() -> None:
    read = table(",smiles\n0,CC\n")
    assert read.columns == ("", "smiles")
    assert [row.cells for row in read.rows] == [("0", "CC")]


@pytest.mark.parametrize("quoted", ['4,"C', '4,"C" x "y'])
def test_a_quote_that_is_not_closed_spoils_its_row_alone(quoted: str) -> None:
    found = list(table(f"id,smiles\n3,C\n{quoted}\n5,CC\n\n6,CCC\n").rows)
    assert [row.cells[0] for row in found] == ["3", "4", "5", "6"]
    assert [row.line for row in found] == [2, 3, 4, 6]
    assert [row.cells[1] for row in found[2:]] == ["CC", "CCC"]
    assert found[1].cells[1].startswith("C")


def test_what_is_said_of_a_quote_that_is_not_closed() -> None:
    found = list(table('id,smiles\n4,"C\n5,CC\n').rows)
    assert found[0].problem == "got a quote that opens a cell, expected another that closes it"
    assert found[1].problem is None


def test_quotes_inside_cells() -> None:
    assert cells('id,name,smiles\n1,5" pipe,C\n2,"a ""b"" c",CC\n3,"5" pipe,CCC\n') == [
        ("1", '5" pipe', "C"),
        ("2", 'a "b" c', "CC"),
        ("3", "5 pipe", "CCC"),
    ]


def test_nul_is_a_character() -> None:
    assert cells(b"smiles,n\nC\x00C,1\nCC,2\n") == [("C\x00C", "1"), ("CC", "2")]


def test_a_line_that_is_too_long() -> None:
    found = list(table(f"smiles,n\nC,1\n{'C' * (3 * LONGEST_LINE)},2\nCC,3\n").rows)
    assert [row.cells for row in found] == [("C", "1"), ("", ""), ("CC", "3")]
    assert found[1].problem == "got a line of more than 131072 characters, expected at most that"
    assert [row.line for row in found] == [2, 3, 4]


def test_a_cell_of_many_lines_that_never_ends() -> None:
    endless = '0,"' + "C\n" * LONGEST_RECORD
    found = table(f"id,smiles\n{endless}").rows
    first, second = islice(found, 2)
    assert first.problem is not None
    assert second.cells == ("C", "")
    assert sum(1 for _ in found) == LONGEST_RECORD - 2


def test_memory_is_flat() -> None:
    row = b'1,"a b",CCO\n'
    content = io.BytesIO(b"id,name,smiles\n" + row * 50_000 + b"x" * 3_000_000 + b"\n" + row)
    tracemalloc.start()
    try:
        count = sum(1 for _ in open_table(content).rows)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 50_002
    assert most < 3_000_000


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff", "sep=;\n", " \r\n"])
def test_no_header(content: str) -> None:
    with pytest.raises(InvalidInputError, match="got no text, expected a header"):
        table(content)


def test_header_only() -> None:
    read = table("smiles,n")
    assert (read.columns, list(read.rows)) == (("smiles", "n"), [])


@pytest.mark.parametrize("magic", [b"PK\x05\x06", b"BZh91AY", b"\xfd7zXZ\0", b"\xd0\xcf\x11\xe0"])
def test_archives_of_other_kinds(magic: bytes) -> None:
    with pytest.raises(InvalidInputError, match="got an archive or an Excel workbook"):
        table(magic + b"\nsmiles\nC\n")


def test_archive() -> None:
    with pytest.raises(InvalidInputError, match="got an archive or an Excel workbook"):
        table(b"PK\x03\x04 and so on")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.text(max_size=6), st.text(max_size=6), st.text(max_size=6)), max_size=8),
    st.sampled_from(",;\t|"),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_what_csv_writes_is_read_back(
    rows: list[tuple[str, str, str]], delimiter: str, encoding: str
) -> None:
    rows = [tuple(cell.encode("utf-8", "ignore").decode() for cell in row) for row in rows]
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([("id", "smiles", "note"), *rows])
    read = table(text.getvalue().encode(encoding))
    assert (read.columns, read.delimiter) == (("id", "smiles", "note"), delimiter)
    assert [row.cells for row in read.rows] == rows


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(alphabet='ab,;"\n\r \t|', max_size=60))
def test_whatever_comes_every_line_with_text_is_in_some_record(text: str) -> None:
    found = list(table("smiles,n,m\n" + text, ",").rows)
    assert [row.number for row in found] == list(range(1, len(found) + 1))
    assert [row.line for row in found] == sorted({row.line for row in found})
    assert {len(row.cells) for row in found} <= {3}
    if '"' not in text:
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        assert len(found) == sum(bool(line.strip(" \t")) for line in lines)


# --- encodings ---


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("utf-8", "utf-8"), ("utf-8-sig", "utf-8"), ("utf-16", "utf-16"), ("cp1252", "cp1252")],
)
def test_encodings(encoding: str, shown: str) -> None:
    read = table("smiles\tName\r\nC\tMüller-Säure € 5 µM\r\n".encode(encoding))
    assert (read.columns, read.encoding, read.delimiter) == (("smiles", "Name"), shown, "\t")
    assert [row.cells for row in read.rows] == [("C", "Müller-Säure € 5 µM")]


@pytest.mark.parametrize("order", ["le", "be"])
def test_both_orders_of_utf_16(order: str) -> None:
    content = "\ufeffsmiles\tid\nCCO\ta\n".encode(f"utf-16-{order}")
    assert cells(content) == [("CCO", "a")]


@pytest.mark.parametrize("order", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark(order: str) -> None:
    read = table("sm,\u00b5\nC,\u2028\n".encode(order))
    assert (read.encoding, read.columns) == ("utf-16", ("sm", "\u00b5"))
    assert [row.cells for row in read.rows] == [("C", "\u2028")]


@pytest.mark.parametrize("encoding", ["utf-32", "utf-32-le", "utf-32-be"])
def test_utf_32(encoding: str) -> None:
    with pytest.raises(InvalidInputError, match="got UTF-32, expected UTF-8, UTF-16"):
        table("smiles\nC\n".encode(encoding))


def test_no_byte_is_lost() -> None:
    every = bytes(k for k in range(256) if k not in b'\r\n",')
    ((_, found),) = cells(b'smiles,n\nC,"' + every + b'"\n', ",")
    assert len(found) == len(every)
    assert len(set(found)) == len(every)
    assert found[-1] == "ÿ"
    assert "\x81" in found
    assert "€" in found


def test_one_byte_at_the_end_decides_about_a_long_file() -> None:
    content = b"smiles,n\n" + "C,ä\n".encode() * 600_000
    assert table(content).encoding == "utf-8"
    assert table(content + b"C,\xe4\n").encoding == "cp1252"


def test_mark_of_utf8_on_what_is_none() -> None:
    read = table(b"\xef\xbb\xbfsmiles,n\nC,\xe4\n")
    assert (read.columns, read.encoding) == (("smiles", "n"), "cp1252")
    assert [row.cells for row in read.rows] == [("C", "ä")]


def test_stream_stays_open_and_can_be_read_again() -> None:
    stream = io.BytesIO(b"smiles\nC\n")
    for _ in range(2):
        assert [row.cells for row in open_table(stream).rows] == [("C",)]
    assert not stream.closed


def test_gzip_by_its_content(tmp_path: Path) -> None:
    for name, content in (("a.csv", gzip.compress(b"smiles\nC\n")), ("b.gz", b"smiles\nC\n")):
        (tmp_path / name).write_bytes(content)
        with open_stream(tmp_path / name) as stream:
            assert [row.cells for row in open_table(stream).rows] == [("C",)]


def test_damaged_gzip(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"smiles\nC\n")[:-9])
    with (
        open_stream(tmp_path / "a.csv.gz") as stream,
        pytest.raises(InvalidInputError, match="damaged gzip"),
    ):
        open_table(stream)


# --- delimiters ---


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiters(delimiter: str) -> None:
    read = table("name,Smiles,note\na,CCO,\nb,C,x y\n".replace(",", delimiter))
    assert (read.columns, read.delimiter) == (("name", "Smiles", "note"), delimiter)
    assert [row.cells for row in read.rows] == [("a", "CCO", ""), ("b", "C", "x y")]


@pytest.mark.parametrize("separator", [";", "|", "\t", "!"])
@pytest.mark.parametrize("form", ["sep={}", "SEP={}", '"sep={}"'])
def test_separator_line_of_excel(separator: str, form: str) -> None:
    text = form.format(separator) + "\r\nid,smiles\r\n1,CCO\r\n".replace(",", separator)
    (row,) = table(text).rows
    assert (row.line, row.cells) == (3, ("1", "CCO"))


@pytest.mark.parametrize(
    ("content", "delimiter", "columns"),
    [
        ('smiles;"IC50, nM, 24h, pH 7";name\nCCO;"1,5";a\n', ";", 3),
        ("smiles;IC50 (nM, 24h)\nCCO;1,5\nCC;2,5\n", ";", 2),
        ("id;smiles;a;b\n1;CCO;1,5;2,5\n2;CC;1,0;2,0\n", ";", 4),
        ('smiles,"a;b;c;d;e"\nCCO,1;2;3;4;5\n', ",", 2),
        ("smiles,id,comment\nCCO,a\nCCN,b,ok\nCCC,c,ok,\n", ",", 3),
        ("smiles\tname\nCCO\ta, b, c\nCC\td, e, f\n", "\t", 2),
        ("smiles,note\nCCO |$;;HO$|,a\n", ",", 2),
        ("smiles\nCCO |$;;HO$|\n", ",", 1),
        ("a;b\n", ";", 2),
    ],
)
def test_delimiter_by_content(content: str, delimiter: str, columns: int) -> None:
    read = table(content)
    assert (read.delimiter, len(read.columns)) == (delimiter, columns)
    assert all(row.problem is None for row in read.rows)


def test_one_column_of_inchi_without_quotes() -> None:
    inchi = "InChI=1S/C2H4O2.Na/c1-2(3)4;/h1H3,(H,3,4);/q;+1/p-1"
    assert cells(f"InChI\n{inchi}\nInChI=1S/CH4/h1H4\n")[0] == (inchi,)


# --- names of columns ---


def test_unique_names() -> None:
    assert unique_names(("a", "b", "a", "", "", "a")) == ("a", "b", "a.1", "", ".1", "a.2")
    assert unique_names(("a", "a", "a.1")) == ("a", "a.2", "a.1")
    assert unique_names(("a.1", "a", "a", "a.1")) == ("a.1", "a", "a.2", "a.1.1")
    assert unique_names(("x",) * 20_000)[-1] == "x.19999"


def test_more_columns_than_a_row_may_have() -> None:
    assert len(table("," * 9_999 + "\n").columns) == 10_000
    with pytest.raises(InvalidInputError, match="got 10001 columns, expected at most 10000"):
        table("," * 10_000 + "\n")


@pytest.mark.parametrize(
    "name",
    [
        *("smiles", "Canonical SMILES", "isomeric_smiles", "Ligand SMILES", "SMILES (canonical)"),
        *("SMILES_ISO", "CanonicalSMILES", "canonicalSmiles", "smi", "Drug", "Structure", "mol"),
        *("InChI", "Standard InChI", "molblock", "Mol Block", "mol_file", "CTAB", "ROMol"),
    ],
)
def test_names_of_the_molecule_column(name: str) -> None:
    assert molecule_column(("id", name, "n"), []) == 1
    assert molecule_column(("id", name, "n"), rows_of(("1", "CCO", "2"))) == 1


@pytest.mark.parametrize(
    ("columns", "row", "expected"),
    [
        (("Molecule", "SMILES_ISO", "pIC50"), ("CHEMBL25", "CCO", "5"), 1),
        (("Drug_ID", "Drug", "Y"), ("aspirin", "CC(=O)O", "1"), 1),
        (("Compound", "Struktur", "Formula"), ("aspirin", "CC(=O)O", "C2H4O2"), 1),
        (("Molecule", "Structure"), ("CCO", "drawn by hand"), 0),
        (("InChIKey", "InChI"), ("BQJCRHHNABKAKU-UHFFFAOYSA-N", "InChI=1S/CH4/h1H4"), 1),
        (("smiles_length", "text"), ("3", "CCO"), 1),
        (("InChI", "smiles"), ("InChI=1S/CH4/h1H4", "C"), 1),
        (("InChI", "smiles"), ("InChI=1S/CH4/h1H4", "n/a"), 0),
        (("Product SMILES", "SMILES"), ("CC", "C"), 1),
        (("id", "structure"), ("a", CELL), 1),
        (("smiles", "name"), ("C1CC", "CCO"), 1),
        (("smiles", "name"), ("", "CCO"), 0),
        (("smiles", "element"), ("nonsense", "C"), 0),
        (("Compound", "Name"), ("aspirin", "Aspirin"), 0),
        (("Code", "Str"), ("CNS", "CCO"), 1),
        (("Series", "Formula", "Str"), ("COCC", "CCOCC", "CCO"), 2),
        (("Name", "n"), ("CCO", "1"), 0),
        (("Murcko_SMILES", "Compound SMILES"), ("c1ccccc1", "Cc1ccccc1"), 1),
        (("reactant smiles", "InChI"), ("C", "InChI=1S/CH4/h1H4"), 1),
        (("fragment_smiles", "n"), ("CC", "1"), 0),
    ],
)
def test_molecule_column_by_content(
    columns: tuple[str, ...], row: tuple[str, ...], expected: int
) -> None:
    assert molecule_column(columns, rows_of(row)) == expected


@pytest.mark.parametrize(
    ("columns", "rows", "expected"),
    [
        (("Compound", "Struct"), [("C1", "CCO"), ("CN", "CCN"), ("CO", "CCC")], 1),
        (("Compound", "Type"), [("CCOCC", "CNS"), ("CCO", "CNS"), ("nonsense", "CNS")], 0),
        (("SMILES", "canonical_smiles"), [("CCO", "CCO"), ("", "CCN"), ("", "CCC")], 1),
        (("SMILES", "canonical_smiles"), [("", ""), ("CCO", ""), ("", "C")], 0),
        (("SMILES", "name"), [("CCO", "CCO"), ("", "CCN"), ("", "CCC")], 0),
    ],
)
def test_molecule_column_by_content_of_many_rows(
    columns: tuple[str, ...], rows: list[tuple[str, ...]], expected: int
) -> None:
    assert molecule_column(columns, rows_of(*rows)) == expected


def test_a_line_of_json_is_no_header() -> None:
    content = '{"smiles": "CCO"}\n{"smiles": "CCN"}\n'
    with pytest.raises(InvalidInputError, match="none of which holds molecules"):
        molecule_column(table(content).columns, [])
    lines = read_smiles_lines(io.BytesIO(content.encode()))
    assert [number for number, _, _ in lines] == [1, 2]


def test_molecule_column_as_wanted() -> None:
    columns = ("smiles", "Product", "Product")
    assert molecule_column(columns, rows_of(("C", "CC", "CCC")), "Product") == 1
    assert molecule_column(columns, [], "Product.1") == 2
    message = "got columns 'smiles, Product, Product', expected 'product', did you mean 'Product'"
    with pytest.raises(InvalidInputError, match=message):
        molecule_column(columns, [], "product")


def test_no_molecule_column() -> None:
    with pytest.raises(InvalidInputError, match="none of which holds molecules, expected one of"):
        molecule_column(("a", "b"), rows_of(("1", "aspirin")))


@pytest.mark.parametrize("content", ["CCO\nCCN\n", "CCO,ethanol\nCCN,amine\n", "CCO\n"])
def test_header_that_is_missing(content: str) -> None:
    read = table(content)
    with pytest.raises(InvalidInputError, match="first row that looks like a molecule"):
        molecule_column(read.columns, list(read.rows))


# --- lines of SMILES ---


def test_lines_of_smiles() -> None:
    text = "CCO ethanol and more\n\nC\n\tCC\tx\n"
    text += "C[C@H](N)C(=O)O |&1:1,r|\tIS_01\tM\nCCO |$;;HO$|\nCCN |a pipe\n"
    assert list(read_smiles_lines(io.BytesIO(text.encode()))) == [
        (1, "CCO", "ethanol and more"),
        (3, "C", ""),
        (4, "CC", "x"),
        (5, "C[C@H](N)C(=O)O |&1:1,r|", "IS_01\tM"),
        (6, "CCO |$;;HO$|", ""),
        (7, "CCN", "|a pipe"),
    ]


@pytest.mark.parametrize(
    "header",
    ["smiles name", "SMILES\tID", "canonical_smiles", "Smiles;x y", "Structure Name", "InChI ID"],
)
def test_header_of_lines_of_smiles(header: str) -> None:
    content = f"{header}\nCCO a\n".encode("utf-16")
    assert list(read_smiles_lines(io.BytesIO(content))) == [(2, "CCO", "a")]


def test_line_of_smiles_that_is_too_long_is_cut() -> None:
    first, second = read_smiles_lines(io.BytesIO(b"C" * 10**6 + b" name\nCC a\n"))
    assert first == (1, "C" * LONGEST_LINE, "")
    assert second == (2, "CC", "a")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (("smiles", "id"), True),
        (("id", "smiles", "x"), True),
        (("no", "smiles"), True),
        (("CCO", "smiles_001"), False),
        (("C", "canonical smiles"), False),
        (("CCO", "ethanol"), False),
        (("smiles name",), False),
    ],
)
def test_is_header(columns: tuple[str, ...], expected: bool) -> None:
    assert is_header(columns) == expected
