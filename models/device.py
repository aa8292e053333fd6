"""The device to compute on, chosen once at start, and its memory."""

from typing import TYPE_CHECKING, Literal, get_args

from models.errors import ConfigError

if TYPE_CHECKING:
    import torch

DeviceChoice = Literal["auto", "cpu", "cuda"]


def choose_device(choice: str) -> "torch.device":
    """Choose the device to compute on.

    Args:
        choice: `cpu`, `cuda`, or `auto` for a GPU if there is one.

    Raises:
        ConfigError: unknown choice, or `cuda` without a GPU.
    """
    if choice not in get_args(DeviceChoice):
        raise ConfigError(
            f"got device {choice!r}, expected one of {', '.join(get_args(DeviceChoice))}"
        )
    import torch  # here, because settings are read and help is printed without it

    if choice == "cuda" and not torch.cuda.is_available():
        raise ConfigError("got device 'cuda', but torch sees no GPU here; expected 'cpu' or 'auto'")
    return torch.device("cuda" if choice != "cpu" and torch.cuda.is_available() else "cpu")


def gpu_memory_bytes() -> int:
    """Return the memory in bytes that this process's torch has reserved on all GPUs."""
    import torch

    return sum(torch.cuda.memory_reserved(k) for k in range(torch.cuda.device_count()))
