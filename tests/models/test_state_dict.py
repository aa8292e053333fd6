from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.errors import CheckpointError
from models.state_dict import load_tensors, read_tensors, sub_state


def tensors() -> dict[str, Tensor]:
    return {"weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([1.0, -1.0])}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_both_formats_are_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(tensors(), path)
    found = read_tensors(path)
    assert found.keys() == tensors().keys()
    assert all(torch.equal(found[name], value) for name, value in tensors().items())


class Harmful:
    """What a pickle of code would run."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("ran"),)


def test_files_that_are_no_tables_of_tensors_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pth"
    with pytest.raises(CheckpointError, match=r"got no file at .*, expected a checkpoint"):
        read_tensors(path)
    path.write_bytes(b"text")
    with pytest.raises(CheckpointError, match="cannot be read as tensors only"):
        read_tensors(path)
    torch.save({"weight": torch.ones(2), "step": 3}, path)
    with pytest.raises(CheckpointError, match="not a table of tensors, expected a state dict"):
        read_tensors(path)
    torch.save(Harmful(), path)
    with pytest.raises(CheckpointError, match="cannot be read as tensors only"):
        read_tensors(path)
    assert not Path("ran").exists()


def test_tensors_are_copied_into_a_module() -> None:
    module = nn.Linear(3, 2)
    load_tensors(module, tensors(), "here")
    assert torch.equal(module.weight, tensors()["weight"])
    assert torch.equal(module.bias, tensors()["bias"])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"bias": None}, "missing bias"),
        ({"more": torch.ones(1)}, "extra more"),
        ({"bias": torch.ones(3)}, r"bias has shape \(3,\), expected \(2,\)"),
        ({"bias": torch.ones(2, dtype=torch.int64)}, "bias is torch.int64, expected torch.float32"),
        ({"bias": torch.tensor([1.0, torch.inf])}, "bias is not finite"),
        # finite in double precision, but not as the module stores it
        ({"bias": torch.tensor([1.0, 1e300], dtype=torch.float64)}, "bias is not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_and_change_nothing(
    changes: dict[str, Tensor | None], problem: str
) -> None:
    module, values = nn.Linear(3, 2), tensors()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    wrong = {name: value for name, value in (values | changes).items() if value is not None}
    with pytest.raises(CheckpointError, match=f"here does not fit Linear: .*{problem}"):
        load_tensors(module, wrong, "here")
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_all_problems_are_named() -> None:
    with pytest.raises(CheckpointError, match="extra more; missing bias; weight has shape"):
        load_tensors(nn.Linear(3, 2), {"weight": torch.ones(1), "more": torch.ones(1)}, "here")


def test_sub_state_takes_a_prefix_away() -> None:
    state = {"a.x": torch.ones(1), "a.a.y": torch.zeros(2), "b.x": torch.ones(3)}
    assert {name: len(value) for name, value in sub_state(state, "a.").items()} == {
        "x": 1,
        "a.y": 2,
    }
