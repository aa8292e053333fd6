"""`gmerging.read_model` and `gmerging.merge`."""

import subprocess
import sys
from pathlib import Path

import pytest

import gmerging
from models.artifact import load_artifact
from models.errors import CheckpointError, ConfigError
from tests.merging.imports.chemprop_files import FILES
from tests.merging.imports.test_hu2020_format import files

ROOT = Path(__file__).parents[2]


def test_a_model_of_chemprop_says_what_it_is() -> None:
    model = gmerging.read_model(FILES / "regression.pt")
    assert model.labels == ("logS", "mp")
    assert model.target == "regression"
    assert list(model.files) == [str(FILES / "regression.pt")]


def test_a_network_in_the_layout_of_hu_et_al_is_told_what_it_is(tmp_path: Path) -> None:
    path = files(tmp_path, "tox")["tox"]["path"]
    model = gmerging.read_model(path, labels=["a", "b"], target="regression")
    assert (model.labels, model.target) == (("a", "b"), "regression")
    with pytest.raises(CheckpointError, match="got no labels"):
        gmerging.read_model(path)


def test_models_become_an_artifact(tmp_path: Path) -> None:
    made = gmerging.merge(
        {"sol": FILES / "regression.pt", "tox": {"path": str(FILES / "binary.pt")}},
        tmp_path / "made",
        method="separate",
        release={"name": "mine", "version": "2.0.0"},
    )
    assert (made.manifest.name, made.manifest.version) == ("mine", "2.0.0")
    assert load_artifact(tmp_path / "made").manifest.tasks.keys() == {"sol", "tox"}
    assert (tmp_path / "made.yaml").is_file()


def test_an_unknown_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"merge: .*methd"):
        gmerging.merge({"sol": FILES / "regression.pt"}, tmp_path / "made", methd="separate")
    with pytest.raises(ConfigError, match=r"read_model: .*labls"):
        gmerging.read_model(FILES / "regression.pt", labls=["a"])


def test_without_the_packages_of_training_it_says_what_to_install() -> None:
    code = """
import sys
sys.modules["yaml"] = None  # as if it were not installed
import gmerging
from models.extras import MissingPackageError
try:
    gmerging.merge
except MissingPackageError as error:
    print(error)
"""
    run = [sys.executable, "-c", code]
    said = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.startswith("gmerging.merge: got no package pyyaml, expected the extra `merging`: ")


def test_public_names_are_found_and_others_are_not() -> None:
    assert set(gmerging.__all__) <= set(dir(gmerging))
    assert all(getattr(gmerging, name) for name in gmerging.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = gmerging.nothing
