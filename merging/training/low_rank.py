"""Low-rank adapters of Linears, folded into their weights after training (LoRA, Hu et al. 2021,
arXiv:2106.09685)."""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class LowRankDelta(nn.Module):
    """What a task adds to a weight (m, n): `up @ down`, of rank r, at first zero.

    Attributes:
        up: (m, r).
        down: (r, n).
    """

    def __init__(self, shape: torch.Size, rank: int) -> None:
        super().__init__()
        rows, columns = shape
        self.up = nn.Parameter(torch.zeros(rows, rank))
        self.down = nn.Parameter(torch.randn(rank, columns) / math.sqrt(columns))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with what is added, (m, n)."""
        return weight + self.up @ self.down


def add_low_rank(network: nn.Module, rank: int) -> None:
    """Add a `LowRankDelta` to the weight of every Linear, in place; they are drawn from torch's
    generator."""
    for module in list(network.modules()):
        if isinstance(module, nn.Linear):
            delta = LowRankDelta(module.weight.shape, rank)
            parametrize.register_parametrization(module, "weight", delta)


def low_rank_deltas(network: nn.Module) -> list[LowRankDelta]:
    """Return what `add_low_rank` has added."""
    return [module for module in network.modules() if isinstance(module, LowRankDelta)]


def fold_low_rank(network: nn.Module) -> None:
    """Make what `add_low_rank` has added part of the weights, in place."""
    for module in list(network.modules()):
        if isinstance(module, nn.Linear) and parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
