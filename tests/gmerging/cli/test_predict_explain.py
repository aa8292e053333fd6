"""`gmerging predict --explain`, and `--escape-formulas`."""

import csv
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rdkit import Chem

from gmerging.cli.main import main
from tests.service.doubles import save_pico_drugs

NAME = "bbbp.p_np percentile among drugs"
LONG = "C" * 101  # read, and searched, by another process


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pico_drugs(tmp_path_factory.mktemp("artifacts") / "drugs")


@pytest.fixture
def molecules(tmp_path: Path) -> Path:
    path = tmp_path / "m.csv"
    path.write_text(f"smiles,note\nO=C1C=CC(=O)C=C1,=1+1\nC1,b\n{LONG},c\n")
    return path


def predict(artifact: Path, *words: object) -> int:
    return main(["predict", "--model", str(artifact), "--device", "cpu", *map(str, words)])


def test_columns_of_csv_and_parquet(artifact: Path, molecules: Path, tmp_path: Path) -> None:
    options = "--tasks", "bbbp", "--explain", "drugs,alerts"
    assert predict(artifact, molecules, "-o", tmp_path / "a.csv", *options) == 3
    assert predict(artifact, molecules, "-o", tmp_path / "a.parquet", *options) == 3
    with (tmp_path / "a.csv").open(newline="") as file:
        quinone, broken, chain = csv.DictReader(file)
    assert list(quinone)[-3:] == ["bbbp.p_np", NAME, "gmerging_alerts"]
    assert quinone["gmerging_alerts"] == "quinone_A(370); chinone_1"
    assert chain["gmerging_alerts"] == "Aliphatic_long_chain"
    for row in (quinone, chain):
        assert float(row[NAME]) == pytest.approx(100 * float(row["bbbp.p_np"]), abs=0.1)
    assert (broken[NAME], broken["gmerging_alerts"]) == ("", "")
    table = pq.read_table(tmp_path / "a.parquet").to_pydict()
    assert table["gmerging_alerts"] == [quinone["gmerging_alerts"], None, chain["gmerging_alerts"]]
    assert table[NAME] == [float(quinone[NAME]), None, float(chain[NAME])]


def test_parquet_of_rows_that_all_fail(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "m.smi").write_text("C1\n")
    output = tmp_path / "a.parquet"
    options = "--explain", "drugs,alerts"
    assert predict(artifact, tmp_path / "m.smi", "-o", output, *options) == 3
    table = pq.read_table(output).to_pydict()
    assert (table[NAME], table["gmerging_alerts"]) == ([None], [None])


def test_formulas(artifact: Path, molecules: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.csv"
    assert predict(artifact, molecules, "-o", output, "--escape-formulas") == 3
    assert [line.split(",")[1] for line in output.read_text().splitlines()][1] == "'=1+1"


def test_what_cannot_be_is_said(
    artifact: Path, pico_artifact: Path, molecules: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(artifact, molecules, "--explain", "drgus") == 2
    assert "did you mean 'drugs'?" in capsys.readouterr().err
    assert predict(artifact, molecules, "--escape-formulas", "--format", "ndjson") == 2
    assert "expected it for csv" in capsys.readouterr().err
    assert predict(pico_artifact, molecules, "--explain", "drugs") == 1
    assert "has no table of drugs" in capsys.readouterr().err


def test_sdf(artifact: Path, molecules: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.sdf"
    options = "--tasks", "bbbp", "--explain", "drugs,alerts"
    assert predict(artifact, molecules, "-o", output, *options) == 3
    quinone, broken, chain = Chem.SDMolSupplier(str(output))
    assert Chem.MolToSmiles(quinone) == "O=C1C=CC(=O)C=C1"
    assert quinone.GetProp("gmerging_alerts") == "quinone_A(370); chinone_1"
    assert 0 <= float(quinone.GetProp(NAME)) <= 100
    assert broken.GetNumAtoms() == 0
    assert broken.HasProp("gmerging_error")
    assert chain.GetNumAtoms() == len(LONG)
