import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.__main__ import main
from service.core import engine


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

    monkeypatch.setattr(engine, "load_engine", load)
    monkeypatch.setattr("models.artifact.load_parts", load)
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
