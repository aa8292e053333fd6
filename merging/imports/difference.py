"""How far a merged model's predictions are from those of the models that somebody brought."""

from collections.abc import Mapping

import torch
from torch import Tensor

MEASURED = 1000
"""At most so many molecules, and at most a fifth, are not trained on and give the difference."""


def measured_count(molecules: int) -> int:
    """Return how many of a pool's molecules give the difference."""
    return max(1, min(MEASURED, molecules // 5))


def differences(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, float]:
    """Compute by task how far predictions are from those of the user's own models: the root mean
    square of the difference over molecules, in standard deviations of the own model's predictions,
    as mean over labels. It needs no labels of molecules.

    Args:
        found, expected: predictions (P, C) by task.
    """
    result = {}
    for task, own in expected.items():
        squared = (found[task].double() - own.double()).square().mean(0)
        variance = own.double().var(0, correction=0)
        # A label that the own model gives one value for: its difference counts in its own unit.
        scaled = (squared / torch.where(variance > 0, variance, 1.0)).sqrt()
        result[task] = float(scaled.mean())
    return result
