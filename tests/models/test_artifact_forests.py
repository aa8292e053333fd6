"""Artifacts with forests: what is written comes back, what is damaged or unknown is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from models.artifact import load_artifact, load_components, read_manifest, save_artifact
from models.data.fingerprint import WIDTH
from models.data.schema import MoleculeInput
from models.errors import ArtifactError
from models.manifest import STREAMS_VERSION, Manifest
from tests.forests import random_rows
from tests.service.doubles import save_pico_artifact, save_pico_forests, save_pico_shared_artifact


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks; `clintox` and `tox21` have forests."""
    return save_pico_forests(tmp_path_factory.mktemp("forests") / "pico")


def test_forests_come_back_with_their_task(folder: Path) -> None:
    artifact = load_artifact(folder)
    assert list(artifact.forests) == ["clintox", "tox21"]
    assert artifact.manifest.input == MoleculeInput(
        reading_rule=2, fingerprint="ecfp4-2048+descriptors-1"
    )
    outputs = artifact.forests["tox21"].outputs(random_rows(3))
    some = load_artifact(folder, tasks=["tox21", "bbbp"])
    assert list(some.forests) == ["tox21"]
    assert np.array_equal(some.forests["tox21"].outputs(random_rows(3)), outputs)


def test_tasks_with_forests_may_share_a_stream(tmp_path: Path) -> None:
    folder = save_pico_forests(tmp_path / "shared", save_pico_shared_artifact)
    components = load_components(folder)
    manifest = components.manifest
    assert manifest.format_version == STREAMS_VERSION
    assert manifest.streams["common"].tasks == tuple(components.forests) == ("clintox", "tox21")
    names = ("backbone", "streams/common", *(f"tasks/{task}" for task in manifest.tasks))
    forests = (f"forests/{task}" for task in components.forests)
    assert set(manifest.files) == {f"{name}.safetensors" for name in (*names, *forests)}
    for file in ("tasks/bbbp", "tasks/clintox", "forests/clintox"):
        (folder / f"{file}.safetensors").unlink()
    some = load_components(folder, ["tox21"])
    assert (list(some.experts), list(some.forests)) == (["tox21"], ["tox21"])
    assert some.experts["tox21"].stream.name == "common"


def test_files_of_other_tasks_may_be_missing(folder: Path, tmp_path: Path) -> None:
    copy = save_pico_forests(tmp_path / "copy")
    (copy / "forests/clintox.safetensors").unlink()
    assert list(load_components(copy, ["tox21"]).forests) == ["tox21"]
    with pytest.raises(ArtifactError, match=r"got no readable forests/clintox.safetensors"):
        load_components(copy)


def test_an_altered_forest_is_refused(tmp_path: Path) -> None:
    copy = save_pico_forests(tmp_path / "copy")
    path = copy / "forests/tox21.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ArtifactError, match=r"tox21.safetensors: got other contents"):
        load_artifact(copy)


def test_without_forests_the_manifest_has_no_new_field(tmp_path: Path) -> None:
    raw = json.loads((save_pico_artifact(tmp_path / "plain") / "manifest.json").read_text())
    assert "forests" not in raw
    assert "fingerprint" not in raw["input"]


def test_replacing_looks_into_the_folder_of_forests(folder: Path, tmp_path: Path) -> None:
    copy = save_pico_forests(tmp_path / "copy")
    (copy / "forests/notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"not its own.*forests/notes.txt"):
        save_pico_forests(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": {"kind": "molecule", "reading_rule": 2}}, "input states no rule"),
        ({"input": {"kind": "molecule", "fingerprint": "maccs-1"}}, "descriptors-1.*maccs-1"),
        ({"forests": {"other": {}}}, "default"),
        ({"tasks": "multiclass"}, "got a task of target 'multiclass', level 'graph', expected"),
        ({"tasks": "removed"}, "got 'clintox', expected tasks of the manifest"),
    ],
)
def test_manifests_that_do_not_fit_are_refused(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    raw = read_manifest(folder)[0].model_dump(mode="json")
    if changes.get("tasks") == "multiclass":
        changes = {
            "tasks": {name: info | {"target": "multiclass"} for name, info in raw["tasks"].items()}
        }
    elif changes.get("tasks") == "removed":
        changes = {
            "tasks": {name: info for name, info in raw["tasks"].items() if name != "clintox"}
        }
    with pytest.raises(ValidationError, match=message):
        Manifest.model_validate(raw | changes)


def test_forests_must_be_those_of_the_manifest(folder: Path, tmp_path: Path) -> None:
    components = load_components(folder)
    written = components.manifest, components.backbone, components.experts
    with pytest.raises(ArtifactError, match=r"got forests \[\], expected those of the manifest"):
        save_artifact(tmp_path / "new", *written)
    wide = dict(components.forests)
    wide["tox21"].columns[0, 0] = WIDTH
    with pytest.raises(ArtifactError, match=r"not written: .*tox21.safetensors: columns: got"):
        save_artifact(tmp_path / "new", *written, forests=wide)
    assert not (tmp_path / "new").exists()
