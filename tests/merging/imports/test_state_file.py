"""State dicts of any networks: nested, old, and what is none."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from merging.imports.state_file import read_state
from models.errors import CheckpointError

W = torch.arange(6.0).view(2, 3)


def saved(path: Path, content: object, **settings: bool) -> Path:
    torch.save(content, path, **settings)
    return path


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "molecule_model"])
@pytest.mark.parametrize("new", [True, False])
def test_nested_state_dicts_are_found(key: str, new: bool, tmp_path: Path) -> None:
    content = {"epoch": 7, key: {"w": torch.nn.Parameter(W)}, "note": "best"}
    path = saved(tmp_path / "a.pth", content, _use_new_zipfile_serialization=new)
    found = read_state(path)
    assert torch.equal(found["w"], W)
    assert not found["w"].requires_grad


def test_flat_files_of_torch_and_safetensors_are_read(tmp_path: Path) -> None:
    save_file({"w": W}, tmp_path / "a.safetensors")
    assert torch.equal(read_state(tmp_path / "a.safetensors")["w"], W)
    assert torch.equal(read_state(saved(tmp_path / "a.pt", {"w": W}))["w"], W)


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"w": 3}, "got 3 under 'w', expected a state dict, of the file itself or of its state_"),
        ({3: W}, "got a Tensor under 3, expected a state dict"),
        ({}, "got no tensor, expected a state dict"),
        ({"state_dict": {"w": W}, "model": {"w": W}}, "got state dicts under state_dict and model"),
        ([W], "got a list, expected a"),
    ],
)
def test_what_is_no_state_dict_is_refused(
    content: object, message: str, new: bool, tmp_path: Path
) -> None:
    path = saved(tmp_path / "a.pth", content, _use_new_zipfile_serialization=new)
    with pytest.raises(CheckpointError) as refused:
        read_state(path)
    assert str(refused.value).startswith(f"{path}: {message}")


def test_an_old_file_that_calls_a_function_is_refused(tmp_path: Path) -> None:
    class Call:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "canary",)

    path = saved(tmp_path / "a.pth", {"w": Call()}, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="got a file that cannot be read as tensors only"):
        read_state(path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("content", [b"\x80\x02}", b"", b"text"])
def test_damaged_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.pth: got"):
        read_state(tmp_path / "a.pth")


def test_tensors_that_are_not_dense_are_refused(tmp_path: Path) -> None:
    content = {"w": torch.eye(2).to_sparse()}
    path = saved(tmp_path / "a.pth", content, _use_new_zipfile_serialization=False)
    with pytest.raises(
        CheckpointError, match=r"got w of layout torch\.sparse_coo on cpu, expected"
    ):
        read_state(path)
