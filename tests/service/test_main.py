import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.__main__ import _leave_current_folder, _log_addresses, main
from service.core import artifact_engine
from service.security import KeyRing


@pytest.fixture(autouse=True)
def _as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the start changes of the process is taken back after each test."""
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.mark.parametrize(
    ("name", "value"), [("PORT", "high"), ("DEVICE", "tpu"), ("ARTIFACT", "/nowhere/at/all")]
)
def test_wrong_setting_stops_the_start_in_one_line(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GMERGING_PORT", "0")
    monkeypatch.setenv(f"GMERGING_{name}", value)
    with pytest.raises(SystemExit, match=value) as stop:
        main([])
    assert isinstance(stop.value.code, str)  # the interpreter prints it and exits with 1
    assert stop.value.code.startswith("gmerging-serve: ")
    assert "\n" not in stop.value.code


@pytest.mark.parametrize("workers", ["1", "2"])
def test_folder_of_jobs_that_cannot_be_written_is_said_before_anything_is_loaded(
    workers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GMERGING_PORT", "0")
    monkeypatch.setenv("GMERGING_WORKERS", workers)
    monkeypatch.setenv("GMERGING_ARTIFACT", "/nowhere")
    monkeypatch.setenv("GMERGING_JOBS", "file")
    with pytest.raises(
        SystemExit,
        match=r"GMERGING_JOBS: got '.*/file': File exists, expected a folder that can be written",
    ):
        main([])


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("name", ["PORT", "METRICS_PORT"])
def test_port_that_is_taken_is_said_before_anything_is_loaded(
    name: str, workers: str, taken: int, pico_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        pytest.fail("the model was loaded first")

    monkeypatch.setattr(artifact_engine, "load_engine", load)
    monkeypatch.setattr("models.artifact.load_components", load)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR")
    monkeypatch.setenv("GMERGING_ARTIFACT", str(pico_artifact))
    monkeypatch.setenv("GMERGING_WORKERS", workers)
    monkeypatch.setenv("GMERGING_PORT", "0")
    monkeypatch.setenv(f"GMERGING_{name}", str(taken))
    expected = f"gmerging-serve: GMERGING_{name}: got {taken} on 127.0.0.1: Address already in use"
    with pytest.raises(SystemExit, match=expected):
        main([])


def test_host_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GMERGING_HOST", "no.such.host.invalid")
    with pytest.raises(SystemExit, match=r"GMERGING_HOST: got 'no\.such\.host\.invalid'"):
        main([])


def test_key_command_prints_a_key_and_the_entry_that_opens_for_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["key", "lab-7"])
    first, second = capsys.readouterr().out.splitlines()
    key, entry = first.removeprefix("key (shown this once): "), second.removeprefix("entry: ")
    client = KeyRing(f"[{entry}]").client_of(key)
    assert client is not None
    assert (client.name, client.admin, client.molecules_per_minute) == ("lab-7", False, None)
    assert key not in entry


def test_key_for_a_name_that_is_none_is_refused() -> None:
    expected = (
        "gmerging-serve: name: got 'a name with spaces', expected 1 to 64 letters, digits, dots,"
        " underscores or hyphens"
    )
    with pytest.raises(SystemExit) as stop:
        main(["key", "a name with spaces"])
    assert stop.value.code == expected


def test_processes_that_start_later_find_their_modules_and_a_folder_that_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"here{os.pathsep}/there")
    _leave_current_folder()
    assert os.environ["PYTHONPATH"] == f"{tmp_path}/here{os.pathsep}/there"
    assert Path.cwd() == Path("/")


def test_folder_that_is_gone_is_left_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    monkeypatch.setenv("PYTHONPATH", "here")
    gone.rmdir()
    _leave_current_folder()
    assert (os.environ["PYTHONPATH"], Path.cwd()) == ("here", Path("/"))


def test_server_logs_the_address_of_every_socket(caplog: pytest.LogCaptureFixture) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as first,
        socket.create_server(("127.0.0.1", 0)) as second,
        caplog.at_level("INFO", "service.__main__"),
    ):
        ports = [listening.getsockname()[1] for listening in (first, second)]
        _log_addresses([first, second])
    assert caplog.messages == [
        f"running on http://127.0.0.1:{port} (press Ctrl-C to quit)" for port in ports
    ]
