"""The tutorial of `docs/own-models.md`, from `chemprop train` to an answer, as it stands there."""

import csv
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from gmerging.cli.main import main
from models.artifact import load_artifact
from models.data.dmpnn_features import FeaturizerOptions, featurize_bonds
from models.errors import MoleculeError
from models.families.table import FAMILIES

PAGE = Path(__file__).parents[3] / "docs/own-models.md"
SHORT = ("--epochs", "3", "--accelerator", "cpu", "--num-workers", "0", "-q")
TABLES = {"pre": ("size", "oxygen"), "tox": ("toxic",), "logd": ("logd",)}
MOLECULES = ["C" * k + end for k in range(1, 11) for end in ("O", "N", "F", "(=O)O")]

pytestmark = pytest.mark.slow


def write_tables(folder: Path) -> None:
    """Made-up numbers that a network can learn, and molecules without any."""
    for name, columns in TABLES.items():
        with (folder / f"{name}.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["smiles", *columns])
            for k, smiles in enumerate(MOLECULES):
                numbers = {"pre": (len(smiles), smiles.count("O")), "tox": (k % 2,)}
                writer.writerow([smiles, *numbers.get(name, (k / 10,))])
    (folder / "unlabelled.smi").write_text("\n".join(MOLECULES))


def test_the_tutorial_goes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    python = os.environ.get("GMERGING_CHEMPROP_PYTHON")
    if python is None:
        pytest.skip("GMERGING_CHEMPROP_PYTHON does not name a Python with chemprop")
    block = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.S)[0]
    lines = [shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines()]
    write_tables(tmp_path)
    monkeypatch.chdir(tmp_path)
    trained = [line for line in lines if line[:2] == ["chemprop", "train"]]
    assert len(trained) == 3
    for line in trained:
        command = [str(Path(python).parent / "chemprop"), *line[1:], *SHORT]
        subprocess.run(command, check=True, capture_output=True)
    ours = [line for line in lines if line[:1] == ["gmerging"]]
    assert [line[1] for line in ours] == ["check-models", "import-models"]
    for line in ours:
        assert main(line[1:]) == 0
    said = capsys.readouterr().out
    assert said.count("related") == 2
    assert "unrelated" not in said
    assert "mine 0.1.0: 2 tasks, rank 30 in merged" in said
    model, family = load_artifact(tmp_path / "merged").model, FAMILIES["dmpnn"]
    read = featurize_bonds(["CCO"], FeaturizerOptions())
    batch = family.collate([item.graph for item in read if not isinstance(item, MoleculeError)])
    answer = family.answer(model, batch, ("tox", "logd"), "own")
    assert 0 < float(answer["tox"].values) < 1
    assert answer["logd"].is_finite
