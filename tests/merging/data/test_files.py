import errno
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from merging.data.files import read_json, write_json, write_tensors
from models.errors import DataError
from models.files import temporary_beside, write_atomically


def test_round_trips(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b.json", {"x": [1, None]})
    assert read_json(tmp_path / "a" / "b.json") == {"x": [1, None]}
    assert read_json(tmp_path / "absent.json") is None
    write_tensors(tmp_path / "c.safetensors", {"t": torch.arange(6).view(2, 3).T})
    assert torch.equal(load_file(tmp_path / "c.safetensors")["t"], torch.arange(6).view(2, 3).T)


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, 1)

    def half(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, half)
    assert read_json(path) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def test_a_full_disk_says_whose(tmp_path: Path) -> None:
    def full(temporary: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"No space left on device: '.*piece'$"):
        write_atomically(tmp_path / "piece", full)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xff"])
def test_damaged_results_are_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_bytes(content)
    with pytest.raises(DataError, match=r"summary\.json: got a damaged file \(.+\), expected"):
        read_json(tmp_path / "summary.json")


def test_writers_with_one_process_id_do_not_share_a_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in two containers on one volume: both write, and then both move their file into place."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    monkeypatch.setattr(socket, "gethostname", lambda: "service")
    half, whole = threading.Barrier(2, timeout=20), threading.Barrier(2, timeout=20)

    def write(letter: str) -> None:
        def fill(temporary: Path) -> None:
            with temporary.open("w") as stream:
                stream.write(letter * 5000)
                stream.flush()
                half.wait()
                stream.write(letter * 5000)
            whole.wait()

        write_atomically(tmp_path / "piece", fill)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, "ab"))
    assert (tmp_path / "piece").read_text() in ("a" * 10000, "b" * 10000)
    assert [path.name for path in tmp_path.iterdir()] == ["piece"]


def test_a_temporary_name_says_whose_it_is_and_is_never_too_long(tmp_path: Path) -> None:
    path = temporary_beside(tmp_path / "x.json")
    assert path.parent == tmp_path
    assert path.name.startswith(f".x.json.{socket.gethostname()[:32]}-{os.getpid()}-")
    temporary_beside(tmp_path / ("n" * 255)).write_text("fits")
