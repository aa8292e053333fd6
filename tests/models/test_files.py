"""Files and folders are replaced as a whole, or not at all."""

import errno
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models import files
from models.files import replace_folder, temporary_beside, write_atomically


def test_a_file_is_written_with_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "file.txt"
    write_atomically(path, lambda temporary: temporary.write_text("content"))
    assert path.read_text() == "content"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("error", [RuntimeError("stop"), OSError(errno.ENOSPC, "full")])
def test_a_failed_write_keeps_the_old_file(tmp_path: Path, error: Exception) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    with pytest.raises(type(error)) as caught:
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    if isinstance(caught.value, OSError):
        assert caught.value.filename == str(path)


def folder_of(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "file.txt").write_text(content)
    return path


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_is_replaced(
    tmp_path: Path, exchange: bool, exists: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    folder = tmp_path / "folder"
    if exists:
        (folder_of(folder, "old") / "old.txt").touch()
    replace_folder(folder_of(tmp_path / "new", "new"), folder)
    assert [entry.name for entry in folder.iterdir()] == ["file.txt"]
    assert (folder / "file.txt").read_text() == "new"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_failed_replacement_restores_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    folder = folder_of(tmp_path / "folder", "old")
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "missing", folder)
    assert (folder / "file.txt").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("exists", [True, False])
def test_of_processes_that_replace_a_folder_at_one_time_none_fails(
    tmp_path: Path, exchange: bool, exists: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    folder, barrier = tmp_path / "folder", threading.Barrier(3, timeout=20)
    if exists:
        folder_of(folder, "old")

    def replace(name: str) -> None:
        for k in range(20):
            new = folder_of(tmp_path / f"{name}{k}", name)
            barrier.wait()
            replace_folder(new, folder)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(replace, "abc"))
    assert (folder / "file.txt").read_text() in ("a", "b", "c")
    assert list(tmp_path.iterdir()) == [folder]


def test_the_old_folder_is_removed_where_another_process_puts_its_own_after_the_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    folder, new = folder_of(tmp_path / "folder", "old"), folder_of(tmp_path / "new", "new")
    other = folder_of(tmp_path / "other", "other")
    exists, rename, looks = Path.exists, Path.rename, iter([True, False])

    def overtaken(path: Path, target: Path) -> Path:
        if target == folder and exists(other):
            rename(other, folder)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", overtaken)
    monkeypatch.setattr(
        Path, "exists", lambda path: next(looks, True) if path == folder else exists(path)
    )
    replace_folder(new, folder)
    monkeypatch.undo()
    assert (folder / "file.txt").read_text() == "new"
    assert list(tmp_path.iterdir()) == [folder]


def test_who_cannot_get_a_folder_in_at_all_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, new = folder_of(tmp_path / "folder", "old"), folder_of(tmp_path / "new", "new")
    attempts = []

    def taken(*_: object) -> None:
        attempts.append(1)
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(files, "_replace", taken)
    with pytest.raises(OSError, match="Directory not empty"):
        replace_folder(new, folder)
    assert 1 < len(attempts) <= 100


def test_temporary_names_are_hidden_and_differ(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 200)
    first, second = temporary_beside(path), temporary_beside(path)
    assert first != second
    assert first.parent == tmp_path
    assert first.name.startswith(".xxx")
    assert len(first.name) < 255
