"""Files of unlabelled molecules in every form."""

import gzip
from pathlib import Path

import pytest

from merging.data.molecule_files import read_molecules
from models.errors import DataError

SMILES = ["CCO", "c1ccccc1", "CC(=O)O"]


def write(path: Path, text: str) -> Path:
    content = text.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.smi", "a.txt.gz"])
@pytest.mark.parametrize(
    "text",
    [
        "CCO\nc1ccccc1\nCC(=O)O\n",
        "CCO ethanol\nc1ccccc1\tbenzene\nCC(=O)O acetic acid",
        "smiles name\nCCO 1\nc1ccccc1 2\nCC(=O)O 3\n",
    ],
)
def test_lines_begin_with_a_smiles(name: str, text: str, tmp_path: Path) -> None:
    assert list(read_molecules(write(tmp_path / name, text))) == SMILES


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz", "a.txt"])
def test_a_table_has_a_column_of_molecules(name: str, tmp_path: Path) -> None:
    separator = "\t" if "tsv" in name else ","
    rows = [("id", "smiles", "y"), *((str(k), one, "0") for k, one in enumerate(SMILES))]
    text = "\n".join(separator.join(row) for row in rows)
    assert list(read_molecules(write(tmp_path / name, text))) == SMILES


def test_a_named_column_is_read_whatever_the_file_is_called(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "first,second\nC,CCO\nN,CCN\n")
    assert list(read_molecules(path, "second")) == ["CCO", "CCN"]
    with pytest.raises(DataError, match=r"a\.txt: got columns .*'third'"):
        list(read_molecules(path, "third"))


def test_a_malformed_row_of_a_table_is_empty_and_keeps_its_place(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "smiles,y\nCCO,1\nCC,1,surplus\nCCN,0\n")
    assert list(read_molecules(path)) == ["CCO", "", "CCN"]


def test_rows_beyond_the_sample_are_read_too(tmp_path: Path) -> None:
    smiles = ["C" * (1 + k % 40) for k in range(3000)]
    path = write(tmp_path / "a.csv", "\n".join(["smiles,y", *(f"{one},1" for one in smiles)]))
    assert list(read_molecules(path)) == smiles


def test_an_empty_file_has_no_molecules(tmp_path: Path) -> None:
    assert list(read_molecules(write(tmp_path / "a.txt", ""))) == []


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"got no file .*absent\.txt, expected molecules"):
        list(read_molecules(tmp_path / "absent.txt"))
    (tmp_path / "damaged.txt.gz").write_bytes(gzip.compress(b"CCO\n" * 50)[:-9])
    with pytest.raises(DataError, match=r"damaged\.txt\.gz: "):
        list(read_molecules(tmp_path / "damaged.txt.gz"))


def test_a_parquet_file_has_a_column_of_molecules(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1, 2, 3], "smiles": ["CCO", None, "CC(=O)O"]}), path)
    assert list(read_molecules(path)) == ["CCO", "", "CC(=O)O"]
    assert list(read_molecules(path, "smiles")) == ["CCO", "", "CC(=O)O"]
    damaged = write(tmp_path / "b.parquet", "nothing")
    with pytest.raises(DataError, match=r"b\.parquet: got no Parquet file"):
        list(read_molecules(damaged))
