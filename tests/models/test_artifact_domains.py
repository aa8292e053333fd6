"""Artifacts with applicability domains: what is written comes back, what is damaged or unknown is
refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from models.artifact import load_artifact, load_components, read_manifest, save_artifact
from models.errors import ArtifactError
from models.manifest import Manifest
from tests.domains import domain_info, fingerprint_of, molecules
from tests.service.doubles import save_pico_artifact, save_pico_domains, save_pico_graph_artifact


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pico_domains(tmp_path_factory.mktemp("domains") / "pico")


def test_domains_come_back_with_their_task(folder: Path) -> None:
    artifact = load_artifact(folder)
    assert list(artifact.domains) == list(artifact.manifest.domains) == ["clintox", "tox21"]
    assert artifact.manifest.format_version == 1
    found = artifact.domains["tox21"].molecules.nearest(fingerprint_of(molecules()[100]), 1)
    assert found.rows.tolist() == [100 - 40 + 2]
    assert list(load_artifact(folder, tasks=["tox21", "bbbp"]).domains) == ["tox21"]


def test_files_of_other_tasks_may_be_missing(tmp_path: Path) -> None:
    copy = save_pico_domains(tmp_path / "copy")
    (copy / "domain/clintox.safetensors").unlink()
    assert list(load_components(copy, ["tox21"]).domains) == ["tox21"]
    with pytest.raises(ArtifactError, match=r"got no readable domain/clintox.safetensors"):
        load_components(copy)


def test_an_altered_domain_is_refused(tmp_path: Path) -> None:
    copy = save_pico_domains(tmp_path / "copy")
    path = copy / "domain/tox21.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ArtifactError, match=r"tox21.safetensors: got other contents"):
        load_artifact(copy)


def test_a_domain_that_does_not_fit_the_manifest_names_its_file(tmp_path: Path) -> None:
    copy = save_pico_domains(tmp_path / "copy")
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["domains"]["tox21"]["molecules"] += 1
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"domain/tox21.safetensors: rows: got 440, expected"):
        load_artifact(copy)


def test_without_domains_the_manifest_has_no_new_field(tmp_path: Path) -> None:
    raw = json.loads((save_pico_artifact(tmp_path / "plain") / "manifest.json").read_text())
    assert "domains" not in raw
    assert load_artifact(tmp_path / "plain").domains == {}


def test_replacing_looks_into_the_folder_of_domains(tmp_path: Path) -> None:
    copy = save_pico_domains(tmp_path / "copy")
    (copy / "domain/notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"not its own.*domain/notes.txt"):
        save_pico_domains(copy)


def test_domains_are_those_of_the_manifest(folder: Path, tmp_path: Path) -> None:
    components = load_components(folder)
    written = components.manifest, components.backbone, components.experts
    with pytest.raises(ArtifactError, match=r"got domains \[\], expected those of the manifest"):
        save_artifact(tmp_path / "new", *written, forests=components.forests)


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        ({"unheard": domain_info(3).model_dump()}, "domains: got 'unheard', expected tasks"),
        ({"tox21": {**domain_info(3).model_dump(), "rule": "maccs"}}, "ecfp4-1024-1"),
        ({"tox21": {**domain_info(3).model_dump(), "molecules": 0}}, "greater than or equal to 1"),
    ],
)
def test_manifests_that_do_not_fit_are_refused(
    folder: Path, domain: dict[str, Any], message: str
) -> None:
    raw = read_manifest(folder)[0].model_dump()
    assert Manifest.model_validate(raw)
    with pytest.raises(ValidationError, match=message):
        Manifest.model_validate({**raw, "domains": domain})


def test_models_of_graphs_have_no_domain(tmp_path: Path) -> None:
    raw = read_manifest(save_pico_graph_artifact(tmp_path / "graphs"))[0].model_dump()
    with pytest.raises(ValidationError, match="domains: got some, but 'pyg_gcn' reads no mol"):
        Manifest.model_validate({**raw, "domains": {"weights": domain_info(3).model_dump()}})


def test_domains_hold_their_arrays(folder: Path) -> None:
    first, again = (load_artifact(folder).domains["clintox"] for _ in range(2))
    assert np.array_equal(first.molecules.fingerprints, again.molecules.fingerprints)
    assert first.labels == again.labels
