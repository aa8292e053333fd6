import io

import numpy as np
import pytest
from rdkit import Chem

from models.errors import InvalidInputError
from service.core.reading import ItemFailure, MolBlock, Record
from service.formats import molecule_files as files
from service.formats.kinds import FileKind, kind_of
from service.formats.molecule_files import FileFormat, open_file


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
    assert records[1].passthrough == ("b", "C", "x, y")


@pytest.mark.parametrize(
    "content", ["smiles,name\nCCO,a\n", "name;smiles\na;CCO\n", "smiles\nCCO\n"]
)
def test_tsv_without_tabs(content: str) -> None:
    assert shown(opened(content, "tsv")[1]) == ["CCO"]
    assert opened("smiles\ta,b\nCCO\t1,2\n", "tsv")[1][0].passthrough == ("CCO", "1,2")


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
        "invalid_row", "line 4: got 3 cells, expected 2, one per column of the header"
    )
    assert all(len(record.passthrough) == len(columns) for record in records)


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
    assert [(record.source, record.passthrough) for record in records] == [
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


ASPIRIN_BLOCK = Chem.MolToMolBlock(Chem.MolFromSmiles("CC(=O)Oc1ccccc1C(=O)O"))
INCHI = "InChI=1S/C2H6O/c1-2-3/h3H,2H2,1H3"


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
    assert records[1].passthrough == (("CCN", "IS_03", "S") if header else ("CCN", "IS_03\tS"))


def named(name: str, smiles: str = "CCO") -> str:
    """A `.mol` file."""
    mol = Chem.MolFromSmiles(smiles)
    mol.SetProp("_Name", name)
    return str(Chem.MolToMolBlock(mol))


def test_numbers_of_a_csv_are_written_as_python_writes_them() -> None:
    values = [0.5, 1e-8, 1.234e-5, 9.99e-5, 1e-4, 0.0, 1.0, 1e15, 1e16, 1e300, -2.5e-7, -3.0]
    rng = np.random.default_rng(0)
    drawn = rng.random((40, len(values))) * 10.0 ** rng.integers(-9, 20, (40, len(values)))
    table = np.concatenate([np.array([values, values[::-1]]), drawn])
    expected = [",".join(map(repr, row)) for row in table.tolist()]
    assert files._number_cells(table) == expected
    assert files._number_cells(table[:, ::2]) == [
        ",".join(map(repr, row)) for row in table[:, ::2].tolist()
    ]
