"""`gmerging serve` hands its options on as settings; `gmerging key` makes a key."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import httpx
import pytest

import service.__main__
from gmerging.cli.main import main
from gmerging.cli.serve import SERVED
from models.released import released
from service.security import KeyRing
from service.settings import Settings

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _environment_as_before() -> Iterator[None]:
    with patch.dict(os.environ):
        yield


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings that the service was started with."""
    started: list[Settings] = []
    monkeypatch.setattr(service.__main__, "serve", started.append)
    return started


def test_options_are_settings(served: list[Settings], tmp_path: Path) -> None:
    values = {
        "host": "0.0.0.0",
        "port": 81,
        "artifact": tmp_path,
        "models": tmp_path,
        "device": "cpu",
        "workers": 3,
        "threads": 2,
        "jobs": tmp_path / "jobs",
        "api_keys_file": tmp_path / "keys.json",
        "log_format": "text",
        "log_level": "error",
    }
    assert values.keys() == set(SERVED)
    words = [word for k, v in values.items() for word in (f"--{k.replace('_', '-')}", str(v))]
    assert main(["serve", *words]) == 0
    assert served[0].model_dump(include=set(SERVED)) == values
    # for processes that read them again
    assert os.environ["GMERGING_WORKERS"] == "3"


def test_without_options_the_variables_are_as_they_were(served: list[Settings]) -> None:
    os.environ["GMERGING_PORT"] = "82"
    assert main(["serve"]) == 0
    assert served == [Settings(port=82)]
    assert {name for name in os.environ if name.startswith("GMERGING_")} == {"GMERGING_PORT"}


def test_an_option_comes_before_its_variable(served: list[Settings]) -> None:
    os.environ["GMERGING_PORT"] = "82"
    assert main(["serve", "--port", "83"]) == 0
    assert served[0].port == 83


@pytest.mark.parametrize("flag", ["--model", "--artifact"])
def test_a_released_model_is_known_by_its_name(flag: str, served: list[Settings]) -> None:
    assert main(["serve", flag, "moleculenet-gcn"]) == 0
    assert served[0].artifact == released()["moleculenet-gcn"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "high"], "argument --port: invalid int value: 'high'"),
        (["--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        (["--prot", "1"], "got --prot 1, expected the options of `gmerging serve`"),
    ],
)
def test_invalid_arguments(
    words: list[str], message: str, served: list[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["serve", *words])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not served


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "70000"], "GMERGING_PORT: got '70000'"),
        (["--model", "admte"], "got 'admte', expected a folder, or one of admet"),
    ],
)
def test_settings_that_cannot_be(
    words: list[str], message: str, served: list[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *words]) == 1
    assert message in capsys.readouterr().err
    assert not served


def test_help_has_the_settings_words_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for name in SERVED:
        assert Settings.model_fields[name].description in said
    assert "(default: 8000)" in said
    assert "(default: admet)" in said


def test_it_serves_until_it_is_told_to_stop(pico_artifact: Path, tmp_path: Path) -> None:
    words = ["serve", "--port", "0", "--device", "cpu", "--artifact", str(pico_artifact)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-m", "gmerging", *words],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        found = (re.search(r"running on (http://[\d.:]+)", line) for line in process.stderr)
        url = next(match[1] for match in found if match)
        answer = httpx.post(f"{url}/predict", json={"smiles": "CCO"}, timeout=60).json()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert answer["model"]["name"] == "pico"
    assert process.returncode == 0


def test_key_prints_a_key_and_the_entry_that_opens_for_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["key", "lab-7"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    ring = KeyRing(f"[{second.removeprefix('entry: ')}]")
    client = ring.client_of(first.removeprefix("key (shown this once): "))
    assert client is not None
    assert client.name == "lab-7"


def test_key_for_a_name_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "two words"]) == 1
    assert "gmerging: name: got 'two words', expected 1 to 64" in capsys.readouterr().err
