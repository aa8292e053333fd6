"""What the sections of `benchmarks.gpu_check` share: device, molecules, engines, and clocks."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.measuring import RELEASED
from models.artifact import load_artifact
from models.data.molecule import MolGraph
from service.core.artifact_engine import ArtifactEngine
from service.core.engine import PassOutput

TOLERANCE = 1e-4
"""Largest difference of two answers that counts as rounding; relative for values above 1."""


@dataclass
class Bench:
    """State of all sections.

    Attributes:
        device: to check; `cpu` tries the script where there is no GPU.
        smiles, graphs: molecules of the HIV set.
        seconds: duration of a measurement of a rate.
    """

    device: torch.device
    smiles: list[str]
    graphs: list[MolGraph]
    seconds: float

    def engine(self, device: str | None = None, artifact: Path = RELEASED) -> ArtifactEngine:
        """Load a released model, on the device or on another."""
        at = self.device if device is None else torch.device(device)
        return ArtifactEngine(load_artifact(artifact, at), at)

    def wait(self) -> None:
        """Wait until the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def timed(self, work: Callable[[], object]) -> Iterator[float]:
        """Measure calls for `seconds`, at least three; the first is a warm-up.

        Returns:
            Wall seconds of each call.
        """
        work()
        self.wait()
        end, calls = time.perf_counter() + self.seconds, 0
        while calls < 3 or time.perf_counter() < end:
            started = time.perf_counter()
            work()
            self.wait()
            calls += 1
            yield time.perf_counter() - started


def differences(one: PassOutput, other: PassOutput) -> tuple[float, float]:
    """Find the largest difference of answers, relative for those above 1 (of a regression), and of
    routing weights, between two passes."""
    values, weights = [0.0], [0.0]
    for a, b in zip(one.answers, other.answers, strict=True):
        for task in a:
            scale = np.maximum(1, np.abs(b[task].values))
            values.append(float((np.abs(a[task].values - b[task].values) / scale).max()))
            if a[task].routing.size:
                weights.append(float(np.abs(a[task].routing - b[task].routing).max()))
    return max(values), max(weights)
