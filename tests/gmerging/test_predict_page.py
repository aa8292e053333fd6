"""What the page about predicting shows is what a reader gets."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gmerging.cli.predict import OPTIONS, SOME_FAILED, predict
from merging.cli.parser import Parser
from models.released import released

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/predict.md").read_text()

pytestmark = pytest.mark.skipif(
    not {"admet", "moleculenet-gcn"} <= released().keys(), reason="no released artifacts"
)


def blocks(language: str) -> str:
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL))


def test_the_commands_and_the_python_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f'gmerging() {{ {sys.executable} -m gmerging "$@"; }}\nset -e\n{blocks("sh")}'
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    rows = (tmp_path / "answers.csv").read_text().splitlines()
    assert rows[0].startswith("name,smiles,gmerging_smiles,gmerging_error,bbb_martins.")
    assert len(rows) == 3
    assert len(pd.read_parquet(tmp_path / "answers.parquet")) == 2
    assert '"herg"' in done.stdout
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(blocks("python"), names)
    assert list(names["answers"]["error"].isna()) == [True, True, False]
    assert names["table"]["crosses"].between(0, 1).all()
    assert list(names["table"].index) == ["aspirin", "ethanol"]


def test_exit_codes_are_those_of_the_page_and_of_the_help() -> None:
    table = PAGE.split("### Exit status")[1].split("###")[0]
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    assert listed == {0, 1, 2, SOME_FAILED, 130, 141}
    assert predict.__doc__ is not None
    said = predict.__doc__.split("Exit status:")[1].split("Examples")[0]
    assert {int(code) for code in re.findall(r"\b\d+\b", said)} == listed


def test_options_are_on_the_page() -> None:
    parser = Parser()
    for add in OPTIONS:
        add(parser)
    options = {name for action in parser._actions for name in action.option_strings}
    shown = set(re.findall(r"(--[a-z][a-z-]*)", PAGE))
    assert options - shown <= {"-h", "--help", "-o", "-m"}
    assert shown <= options
