"""What `gmerging inspect` says of an artifact, to people and to programs."""

import json
from pathlib import Path

import pytest

from gmerging.cli.main import main
from merging.release.inspection import describe, inspect
from models.artifact import load_components
from models.released import released

GCN = released()["moleculenet-gcn"]


def test_programs_get_json_with_what_people_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "moleculenet-gcn", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == inspect(GCN)
    text = describe(GCN)
    assert main(["inspect", str(GCN)]) == 0
    assert capsys.readouterr().out == f"{text}\n"
    for task, info in found["tasks"].items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {task} ")]
        assert f" {len(info['labels'])} label" in line
        assert f" {info['score']['value']:.3f} " in line
    assert f"{found['parameters']['all']:,}" in text


def test_parameters_are_counted_once() -> None:
    found, components = inspect(GCN)["parameters"], load_components(GCN)
    modules = [components.backbone, *components.experts.values()]
    total = sum(value.numel() for module in modules for value in module.state_dict().values())
    buffers = sum(value.numel() for value in components.backbone.buffers())
    assert found["all"] == total - buffers
    separate = len(components.experts) * found["backbone"] + found["task_specific"]
    assert found["separate_models"] == separate


def test_surplus_files_are_named(pico_folder: Path) -> None:
    (pico_folder / "notes.txt").write_text("mine")
    assert inspect(pico_folder)["surplus_files"] == ["notes.txt"]
    assert "files that are not in the manifest, which nothing reads: 'notes.txt'" in describe(
        pico_folder
    )


@pytest.fixture
def pico_folder(tmp_path: Path) -> Path:
    from tests.service.doubles import save_pico_artifact

    return save_pico_artifact(tmp_path / "pico")
