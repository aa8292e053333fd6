from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from merging.files import read_json, write_atomically, write_json, write_tensors


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
    assert [each.name for each in tmp_path.iterdir()] == ["file.json"]
