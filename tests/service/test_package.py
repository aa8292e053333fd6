"""What importing the package does to the paths on which modules are looked for."""

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import service

ROOT = str(Path(service.__file__).parents[1])


@pytest.fixture(autouse=True)
def _paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A path of its own for each test, and a current folder that is not the project's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), ROOT, "/lib"])
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.delenv("PYTHONPATH", raising=False)
    yield
    monkeypatch.undo()


@pytest.mark.skipif(sys.flags.safe_path, reason="Python leaves the current folder out by itself")
def test_current_folder_goes_while_python_looks_for_the_module(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["-m"])
    importlib.reload(service)
    assert sys.path == [ROOT, "/lib"]


def test_folder_of_the_package_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["-m"])
    monkeypatch.setattr(sys, "path", [ROOT, "/lib"])
    importlib.reload(service)
    assert sys.path == [ROOT, "/lib"]


def test_import_by_another_program_changes_nothing(tmp_path: Path) -> None:
    importlib.reload(service)
    assert sys.path == [str(tmp_path), ROOT, "/lib"]
    assert "PYTHONPATH" not in os.environ


def test_empty_entry_of_the_variable_goes_and_the_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"/a{os.pathsep}{os.pathsep}/b")
    importlib.reload(service)
    assert os.environ["PYTHONPATH"] == f"/a{os.pathsep}/b"
    assert sys.path == [ROOT, "/lib"]


def test_current_folder_that_was_named_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}")
    importlib.reload(service)
    assert os.environ["PYTHONPATH"] == str(tmp_path)
    assert sys.path == [str(tmp_path), ROOT, "/lib"]
