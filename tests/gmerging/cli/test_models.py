"""`gmerging models`: released artifacts, and those in folders."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gmerging.cli.main import main
from models.released import released


def listed(capsys: pytest.CaptureFixture[str], *folders: Path) -> dict[str, dict[str, Any]]:
    assert main(["models", "--json", *map(str, folders)]) == 0
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)}


def test_released_models_with_what_their_manifests_say(capsys: pytest.CaptureFixture[str]) -> None:
    rows = listed(capsys)
    assert rows.keys() == released().keys()
    for name, row in rows.items():
        folder = released()[name]
        manifest = json.loads((folder / "manifest.json").read_text())
        assert row["tasks"] == {t: i["labels"] for t, i in manifest["tasks"].items()}
        assert row["version"] == manifest["version"]
        assert row["kind"] == manifest["backbone"]["kind"]
        assert row["digest"] == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
        assert (row["from"], row["folder"]) == ("with the package", str(folder))
    assert rows["admet"]["bytes"] > rows["md17-schnet"]["bytes"] > 10_000


def test_a_folder_is_an_artifact_or_holds_some(
    pico_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(pico_artifact, tmp_path / "mine")
    shutil.copytree(pico_artifact, tmp_path / ".old")  # no model, as for the service
    assert listed(capsys, pico_artifact)["pico"]["from"] == str(pico_artifact)
    assert listed(capsys, tmp_path)["pico"]["folder"] == str(tmp_path / "mine")


def test_the_table_has_a_line_for_each(
    pico_artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", str(pico_artifact)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == [
        *("name", "version", "digest", "kind", "takes", "tasks", "labels", "size", "from")
    ]
    assert [line.split()[0] for line in lines] == [*released(), "pico"]
    (gcn,) = [line.split() for line in lines if line.startswith("moleculenet-gcn")]
    assert gcn[3:7] == ["gcn", "molecule", "8", "678"]


def test_a_folder_without_artifacts_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", str(tmp_path)]) == 1
    expected = f"got {tmp_path} without a manifest.json, expected an artifact's folder"
    assert expected in capsys.readouterr().err
