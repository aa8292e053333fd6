from pathlib import Path

import pytest
from pydantic import ValidationError

from models.errors import ConfigError
from service.settings import (
    OTHER_VARIABLES,
    RELEASED_ARTIFACT,
    Settings,
    load_settings,
    variable_names,
)


def test_defaults_listen_on_loopback_and_answer_from_the_release() -> None:
    settings = load_settings()
    assert (settings.host, settings.port, settings.device, settings.threads) == (
        "127.0.0.1",
        8000,
        "auto",
        1,
    )
    assert settings.artifact == RELEASED_ARTIFACT
    assert RELEASED_ARTIFACT.parts[-3:] == ("models", "releases", "admet")


def test_environment_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GMERGING_PORT", "9001")
    monkeypatch.setenv("GMERGING_ARTIFACT", "/somewhere/else")
    monkeypatch.setenv("GMERGING_DEVICE", "")
    settings = load_settings()
    assert (settings.port, settings.artifact, settings.device) == (
        9001,
        Path("/somewhere/else"),
        "auto",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "eighty"),
        ("PORT", "65536"),
        ("DEVICE", "tpu"),
        ("THREADS", "0"),
        ("MAX_MOLECULES", "-1"),
        ("MAX_ATOMS", "0"),
        ("MAX_SMILES_LENGTH", "1.5"),
        ("MAX_BODY_BYTES", "10"),
        ("MAX_BATCH_COST", "0"),
        ("SHUTDOWN_SECONDS", "0"),
        ("WATCH_SECONDS", "inf"),
        ("JOB_HOURS", "inf"),
        ("CORS_ORIGINS", "lab.example"),
        ("CORS_ORIGINS", "https://lab.example/"),
        ("CORS_ORIGINS", "https://lab.example:x"),
    ],
)
def test_wrong_value_names_its_variable(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"GMERGING_{name}", value)
    with pytest.raises(ConfigError, match=f"GMERGING_{name}: got '{value}'"):
        load_settings()


def test_every_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GMERGING_PORT", "x")
    monkeypatch.setenv("GMERGING_THREADS", "y")
    with pytest.raises(ConfigError, match=r"GMERGING_PORT.*GMERGING_THREADS"):
        load_settings()


def test_queue_must_hold_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GMERGING_MAX_PENDING_COST", "10")
    with pytest.raises(
        ConfigError,
        match=r"GMERGING_MAX_PENDING_COST 10, expected at least GMERGING_MAX_BATCH_COST",
    ):
        load_settings()


def test_settings_are_frozen_and_refuse_surprises() -> None:
    with pytest.raises(ValidationError, match="Instance is frozen"):
        Settings().port = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match=r"prot\n  Extra inputs are not permitted"):
        Settings.model_validate({"prot": 1})


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("GMERGING_API_KEY", "GMERGING_API_KEYS"),
        ("GMERGING_WORKER", "GMERGING_WORKERS"),
        ("gmerging_max_molecule", "GMERGING_MAX_MOLECULES"),
    ],
)
def test_variable_that_is_no_setting_is_named_with_the_nearest(
    name: str, nearest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "secret")
    with pytest.raises(ConfigError, match=f"got {name}, .* did you mean '{nearest}'") as error:
        load_settings()
    assert "secret" not in str(error.value)


def test_unknown_and_wrong_variables_are_named_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GMERGING_XQZ", "")
    monkeypatch.setenv("GMERGING_PORT", "x")
    with pytest.raises(ConfigError, match=r"got GMERGING_XQZ, which is no setting; GMERGING_PORT"):
        load_settings()


def test_variables_of_others_are_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OTHER_VARIABLES:
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("GMERGINGS", "x")  # not of the prefix
    assert load_settings() == Settings()
    assert not OTHER_VARIABLES & set(variable_names())


def test_setting_in_two_spellings_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("gmerging_port", "8001")
    assert load_settings().port == 8001
    monkeypatch.setenv("GMERGING_PORT", "8002")
    with pytest.raises(
        ConfigError, match="got gmerging_port and GMERGING_PORT, expected one of them"
    ):
        load_settings()


def test_origins_are_as_browsers_send_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GMERGING_CORS_ORIGINS", "https://Lab.example, http://[::1]:80,null,")
    assert load_settings().cors_origins == ("https://lab.example", "http://[::1]:80", "null")


def test_paths_are_those_of_the_folder_that_it_was_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    monkeypatch.setenv("GMERGING_JOBS", "my/jobs")
    assert load_settings().jobs == gone / "my" / "jobs"
    gone.rmdir()
    with pytest.raises(
        ConfigError,
        match=r"GMERGING_JOBS: got 'my/jobs': the folder that it is relative to, .* is gone",
    ):
        load_settings()
