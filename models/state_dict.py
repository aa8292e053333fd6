"""Reading and loading of state dicts."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.errors import CheckpointError


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a `.safetensors` or `.pth` file to the CPU.

    A `.pth` file is read as weights only, never as a pickle of code.

    Raises:
        CheckpointError: the file is missing or is not a flat table of tensors.
    """
    if not path.is_file():
        raise CheckpointError(
            f"got no file at {path}, expected a checkpoint (.safetensors or .pth)"
        )
    try:
        tensors = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:
        raise CheckpointError(
            f"got a file at {path} that cannot be read as tensors only: {error}"
        ) from error
    if not isinstance(tensors, dict) or not all(
        isinstance(value, Tensor) for value in tensors.values()
    ):
        raise CheckpointError(f"got {path}, which is not a table of tensors, expected a state dict")
    return tensors


def load_tensors(module: nn.Module, tensors: dict[str, Tensor], origin: str) -> None:
    """Copy tensors into a module whose names and shapes must be exactly theirs.

    Args:
        module: what to fill.
        tensors: by name.
        origin: where they are from, for errors.

    Raises:
        CheckpointError: names all tensors that are missing, extra, of another shape, of integers in
            place of floats or the other way round, or not finite.
    """
    expected = module.state_dict()
    problems = [f"missing {key}" for key in expected.keys() - tensors.keys()]
    problems += [f"extra {key}" for key in tensors.keys() - expected.keys()]
    for key in sorted(expected.keys() & tensors.keys()):
        if tensors[key].shape != expected[key].shape:
            problems.append(
                f"{key} has shape {tuple(tensors[key].shape)}, expected"
                f" {tuple(expected[key].shape)}"
            )
        elif tensors[key].is_floating_point() != expected[key].is_floating_point():
            problems.append(f"{key} is {tensors[key].dtype}, expected {expected[key].dtype}")
        elif not bool(tensors[key].to(expected[key].dtype).isfinite().all()):  # as it is stored
            problems.append(f"{key} is not finite")
    if problems:
        raise CheckpointError(
            f"{origin} does not fit {type(module).__name__}: " + "; ".join(sorted(problems))
        )
    module.load_state_dict(tensors)


def sub_state(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with a prefix, without the prefix."""
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }
