"""State dicts of any networks, as people save them: flat, or within a training checkpoint."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merging.imports.safe_reading import read_checkpoint, reason_of, shown
from merging.mergers.task_vector import State
from models.errors import CheckpointError
from models.state_dict import read_tensors

_NESTED = ("state_dict", "model_state_dict", "model", "molecule_model")
"""Keys under which checkpoints of trainings hold their network."""


def read_state(path: Path) -> State:
    """Read a state dict without executing anything.

    Args:
        path: a `.safetensors` file, or one of `torch.save` (`.pt`, `.pth`, `.ckpt`; also of
            versions of torch before 1.6, which wrote no zip archive) with a state dict, or with
            one under `state_dict`, `model_state_dict`, `model` or `molecule_model`.

    Raises:
        CheckpointError: it cannot be read safely, or holds no state dict, or several.
    """
    if path.suffix == ".safetensors":
        return read_tensors(path)
    content = read_checkpoint(path) if _is_new_or_broken(path) else _read_old(path)
    nested = [key for key in _NESTED if isinstance(content.get(key), dict)]
    if len(nested) > 1:
        got = f"state dicts under {' and '.join(nested)}"
        raise CheckpointError(f"{path}: got {got}, expected one")
    state = content[nested[0]] if nested else content
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            got = f"{shown(value)} under {shown(key)}"
            places = f"of the file itself or of its {', '.join(_NESTED)}"
            raise CheckpointError(f"{path}: got {got}, expected a state dict, {places}")
        if value.layout != torch.strided or value.device.type != "cpu":
            got = f"{key} of layout {value.layout} on {value.device}"
            raise CheckpointError(f"{path}: got {got}, expected dense tensors")
    if not state:
        raise CheckpointError(f"{path}: got no tensor, expected a state dict")
    return {key: value.detach() for key, value in state.items()}


def _is_new_or_broken(path: Path) -> bool:
    if not path.is_file() or not path.stat().st_size or zipfile.is_zipfile(path):
        return True
    with path.open("rb") as stream:
        return not stream.read(1).startswith(b"\x80")  # a pickle's first byte


def _read_old(path: Path) -> dict[Any, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        got = f"a file that cannot be read as tensors only ({reason_of(error)})"
        raise CheckpointError(f"{path}: got {got}, expected a state dict") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: got {shown(content)}, expected a state dict")
    return content
