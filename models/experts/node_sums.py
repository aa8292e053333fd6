"""Outputs of a model as sums over the nodes of its graphs."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class NodeSum:
    """Outputs of C labels of a task for G graphs with N nodes in total. The output of a graph is
    the bias plus the sum of the contributions of its nodes.

    Attributes:
        outputs: (G, C), as the model computes them.
        bias: (C,).
        contributions: (N, C) float64.
        sizes: G numbers of nodes.
    """

    outputs: Tensor
    bias: Tensor
    contributions: Tensor
    sizes: Sequence[int]
