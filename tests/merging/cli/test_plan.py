from pathlib import Path

import pytest

from models.artifact import load_artifact
from tests.merging.run.test_stages import command


def test_plan_through_the_command(
    pico_config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = str(tmp_path / "plan.json")
    assert command(tmp_path, "plan", "--group-size", "1", "--output", plan) == 0
    assert "group1: nitrogen" in capsys.readouterr().out
    assert (tmp_path / "plan_heatmap.svg").is_file()
    assert command(tmp_path, "merge", "--plan", plan) == 0
    assert command(tmp_path, "train-adapters", "--plan", plan, "--tasks", "other") == 0
    assert command(tmp_path, "release", "--plan", plan, "--output", str(tmp_path / "out")) == 0
    assert load_artifact(tmp_path / "out/group2").manifest.name == "pico-group2"
    assert command(tmp_path, "plan", "--restarts", "0") == 1
    assert "restarts" in capsys.readouterr().err
