import io

import pytest
from rdkit import Chem

from models.errors import InvalidInputError
from service.core.reading import ItemFailure, MolBlock
from service.formats.molecule_files import FileFormat, open_file
from tests.service.formats.test_molecule_files import named, opened, sdf, shown


def test_sdf() -> None:
    last = sdf("C").removesuffix("$$$$\n")
    columns, records = opened(sdf("CCO", "c1ccccc1") + "junk\n$$$$\n" + last, "sdf")
    assert columns == ("name", "score")
    assert [record.passthrough for record in records] == [
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


def titles(content: str) -> list[tuple[str, bool]]:
    _, records = opened(content, "sdf")
    return [(record.passthrough[0], isinstance(record.source, MolBlock)) for record in records]


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
    assert [record.passthrough for record in records] == [("one", "Z1"), ("two", "Z2")]


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
    assert (columns, records[0].passthrough) == (("name", "ID"), ("one", "Z1"))


def test_a_mol_block_inside_a_data_field_is_no_record() -> None:
    content = named("one") + "> <POSE>\n" + named("pose") + "\n> <ID>\nZ1\n\n$$$$\n"
    columns, (record,) = opened(content, "sdf")
    assert columns == ("name", "POSE", "ID")
    assert record.passthrough == ("one", named("pose").strip("\n"), "Z1")


def test_v3000_blocks() -> None:
    mol = Chem.MolFromSmiles("CCO")
    block = Chem.MolToV3KMolBlock(mol)
    assert titles(block + block) == [("", True), ("", True)]


def test_fields_without_blank_lines_and_twice() -> None:
    content = named("one") + "> <A>\n1\n> <B>\n2\n\n3\n\n> <A>\n4\n$$$$\n"
    columns, (record,) = opened(content, "sdf")
    assert (columns, record.passthrough) == (("name", "A", "B"), ("one", "1\n4", "2\n\n3"))


def test_only_the_line_of_four_dollars_ends_a_record() -> None:
    content = named("$$$$weird") + "> <PRICE>\n$$$$ high\n\n$$$$  \n" + named("two")
    columns, records = opened(content, "sdf")
    assert columns == ("name", "PRICE")
    assert [record.passthrough for record in records] == [("$$$$weird", "$$$$ high"), ("two", None)]


def test_headers_of_fields() -> None:
    fields = "> 25 (MD-1) <A> DT1\n> see <ref>\n  \n\n> DT12\nx\n\n> <>\ny\n \n> (an) odd <B>\nz\n"
    columns, (record,) = opened(named("one") + fields + "$$$$\n", "sdf")
    assert columns == ("name", "A", "DT12", "", "B")
    assert record.passthrough == ("one", "> see <ref>", "x", "y", "z")


def test_values_before_a_block_without_its_header() -> None:
    lines = named("").split("\n", 3)[3]
    content = named("one") + "> <A>\n1\n\n" + lines + "> <A>\n2\n\nx\n" + lines
    columns, records = opened(content, "sdf")
    assert columns == ("name", "A")
    assert [record.passthrough for record in records] == [("one", "1"), ("", "2"), ("x", None)]
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
    assert [record.passthrough for record in records] == [("", "1"), ("", None), ("two", None)]


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
