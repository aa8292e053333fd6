"""`gmerging doctor`: its report and exit status."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from gmerging import diagnosis
from gmerging.cli.main import main
from gmerging.diagnosis import Finding

GOOD = Finding("system", "python", "3.11")
BAD = Finding("packages", "torch", "1.0", "expected torch>=2.7")


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    findings: list[Finding] = []

    def examine() -> Sequence[Finding]:
        return findings

    monkeypatch.setattr(diagnosis, "examine", examine)
    return findings


def test_without_problems_the_status_is_0(
    found: list[Finding], capsys: pytest.CaptureFixture[str]
) -> None:
    found += [GOOD]
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "system",
        "  python               3.11",
        "no problems",
    ]


def test_problems_are_marked_and_the_status_is_1(
    found: list[Finding], capsys: pytest.CaptureFixture[str]
) -> None:
    found += [GOOD, BAD]
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.splitlines()[2:] == [
        "packages",
        "! torch                1.0: expected torch>=2.7",
        "problems: 1",
    ]


def test_json_for_programs(found: list[Finding], capsys: pytest.CaptureFixture[str]) -> None:
    found += [BAD]
    assert main(["doctor", "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["ok"] is False
    assert Finding(**content["findings"][0]) == BAD


def test_the_home_folder_is_not_shown(
    found: list[Finding], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/somebody"))
    found += [Finding("system", "python", "/home/somebody/bin/python")]
    main(["doctor"])
    assert "~/bin/python" in capsys.readouterr().out
