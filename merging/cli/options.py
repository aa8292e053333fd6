"""What the commands of `gmerging` have in common."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import torch

from models.device import choose_device
from models.errors import ConfigError
from models.manifest import Manifest

_SEEDS = 2**31
AddCommand = Callable[[str, Callable[[argparse.Namespace], None], str], argparse.ArgumentParser]
"""Adds a command: its name, what does it, and a line about it."""


def add_run_options(
    command: argparse.ArgumentParser, folder: Path, config: str, on_device: bool = True
) -> None:
    """What every run has: its configuration, threads, data and work folder; and the device, where
    it can be chosen."""
    bundled = ", ".join(sorted(path.name for path in folder.glob("*.yaml")))
    command.add_argument(
        "--config",
        type=Path,
        default=Path(config),
        help=f"YAML file, or one that comes with the package: {bundled}",
    )
    command.add_argument(
        "--threads",
        type=int,
        default=max(1, (os.cpu_count() or 2) // 2),
        help="torch threads per process",
    )
    if on_device:
        command.add_argument(
            "--device",
            default="auto",
            choices=("auto", "cpu", "cuda"),
            help="auto: cuda if there is one",
        )
    command.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("GMERGING_DATA") or "../shared/data"),
        help="data folder, also by GMERGING_DATA; sets that are not there are fetched",
    )
    command.add_argument(
        "--work",
        type=Path,
        default=Path(os.environ.get("GMERGING_WORK") or "work"),
        help=(
            "work folder, also by GMERGING_WORK: finished pieces are kept there and found again,"
            " and what was stopped goes on"
        ),
    )


def add_replace_option(command: argparse.ArgumentParser) -> None:
    """Let a command that writes an artifact replace one that is not its own."""
    command.add_argument(
        "--replace",
        action="store_true",
        help="replace an artifact of another name or of other tasks too; nothing else is replaced",
    )


def set_up(arguments: argparse.Namespace) -> torch.device:
    """Give torch its threads; returns the device. Raises ConfigError: a number out of
    range, or no such device."""
    for name in ("threads", "processes"):
        if getattr(arguments, name, 1) < 1:
            raise ConfigError(f"--{name}: got {getattr(arguments, name)}, expected at least 1")
    seeds = getattr(arguments, "seeds", [getattr(arguments, "seed", 0)])
    if wrong := [seed for seed in seeds if not 0 <= seed < _SEEDS]:
        raise ConfigError(f"--seed: got {wrong[0]}, expected 0 to {_SEEDS - 1}")
    torch.set_num_threads(arguments.threads)
    return choose_device(getattr(arguments, "device", "cpu"))


def say_artifact(manifest: Manifest, folder: Path | None) -> None:
    """Tell what was written, and where."""
    print(
        f"{manifest.name} {manifest.version}: {len(manifest.tasks)} tasks in"
        f" {folder or Path('models/releases') / manifest.name}"
    )
