"""Speed measurements: alternatives in turns in one run, and a description of the machine."""

import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
RELEASED = Path("models/releases/moleculenet-gcn")


def machine(threads: int) -> dict[str, Any]:
    """Describe the machine: processor, threads and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [
            line.split(":", 1)[1].strip()
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model name")
        ]
        if cpuinfo.exists()
        else []
    )
    packages = ("torch", "numba", "numpy", "rdkit")
    return {
        "processor": (
            f"{names[0] if names else platform.processor()},"
            f" {torch.backends.cpu.get_cpu_capability()}, {len(names)} cores"
        ),
        "threads": threads,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def in_turns(cases: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Measure CPU seconds of functions in turns; the first turn is a warm-up.

    Args:
        cases: functions by name.
        rounds: calls of each that count.

    Returns:
        CPU seconds of this process by name, one per round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, run in cases.items():
            started = time.process_time()
            run()
            if turn:
                seconds[name].append(time.process_time() - started)
    return seconds


def summary(values: list[float], digits: int = 6) -> dict[str, float]:
    """Return median, minimum and maximum."""
    return {
        "median": round(statistics.median(values), digits),
        "low": round(min(values), digits),
        "high": round(max(values), digits),
    }


def ratio(above: list[float], below: list[float]) -> dict[str, float]:
    """Return median, minimum and maximum of the ratio, turn by turn."""
    return summary([a / b for a, b in zip(above, below, strict=True)], 4)
