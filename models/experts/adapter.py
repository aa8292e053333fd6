"""Low-rank adapters that subtract the representation bias of merging: for every task one per layer
and one after the readout.

Source: G-Merging, eq. 2 (node level) and eq. 4 (graph level): H <- H - f(H) with
f(H) = relu(H W_down) W_up, no bias.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from models.data.batch import GraphBatch, mean_readout
from models.networks.base import LayeredNetwork, LayeredShape, SiteHook


class Adapter(nn.Module):
    """f(h) = relu(h W_down) W_up.

    `down` (d, r) is initialised like a linear layer, `up` (r, d) with zeros: an untrained adapter
    subtracts nothing.
    """

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(dim, rank).uniform_(-(dim**-0.5), dim**-0.5))
        self.up = nn.Parameter(torch.zeros(rank, dim))

    @property
    def is_active(self) -> bool:
        """Whether f is not zero everywhere: some column of `down` and the same row of `up` have
        nonzero entries."""
        return bool(((self.down != 0).any(0) & (self.up != 0).any(1)).any())

    def forward(self, h: Tensor) -> Tensor:
        """f(h), which is to be subtracted: (*, d) -> (*, d)."""
        return (h @ self.down).relu() @ self.up


@dataclass(frozen=True)
class LayerOutputs:
    """Intermediate outputs of one pass.

    Attributes:
        convolutions: L tensors (N, d): output of a layer's convolution after its adapter and before
            its BatchNorm. Alignment compares teacher and student there.
        graph_embedding: (G, d), the readout after the graph adapter; input of the head.
    """

    convolutions: tuple[Tensor, ...]
    graph_embedding: Tensor


class TaskAdapters(nn.Module):
    """One task's L node adapters, its graph adapter, and its BatchNorm statistics.

    The statistics are measured on the task's training molecules without labels, and stored: a
    prediction does not depend on the other molecules of its batch.

    Attributes:
        norm_mean, norm_var: (L, d).
    """

    norm_mean: Tensor
    norm_var: Tensor

    def __init__(self, config: LayeredShape, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.sites = nn.ModuleList(
            Adapter(config.hidden_dim, rank) for _ in range(config.num_layers + 1)
        )
        self.register_buffer("norm_mean", torch.zeros(config.num_layers, config.hidden_dim))
        self.register_buffer("norm_var", torch.ones(config.num_layers, config.hidden_dim))

    @property
    def active_sites(self) -> tuple[int, ...]:
        """Sites (layer 0 to L - 1, then L for the graph) whose adapter is active."""
        return tuple(k for k, site in enumerate(self.sites) if cast(Adapter, site).is_active)

    def correct(self, site: int, h: Tensor) -> Tensor:
        """h - f(h) with the adapter of a site (layer 0 to L - 1, or L for the graph), (*, d)."""
        corrected: Tensor = h - self.sites[site](h)
        return corrected

    def forward(self, backbone: LayeredNetwork, batch: GraphBatch) -> LayerOutputs:
        """A pass over a merged backbone with this task's adapters and statistics."""
        return trace(
            backbone,
            batch,
            self.correct,
            lambda layer, h: apply_norm(
                backbone, layer, h, self.norm_mean[layer], self.norm_var[layer]
            ),
        )


def trace(
    backbone: LayeredNetwork,
    batch: GraphBatch,
    correct: SiteHook | None = None,
    normalise: SiteHook | None = None,
) -> LayerOutputs:
    """One pass that keeps the layers' outputs.

    For the hooks see `LayeredNetwork.forward`; `correct` also gets the readout, as site L.
    """
    convolutions: list[Tensor] = []

    def kept(layer: int, h: Tensor) -> Tensor:
        convolutions.append(correct(layer, h) if correct else h)
        return convolutions[-1]

    readout = mean_readout(backbone(batch, kept, normalise), batch)
    return LayerOutputs(
        tuple(convolutions), correct(len(convolutions), readout) if correct else readout
    )


def apply_norm(
    backbone: LayeredNetwork, layer: int, h: Tensor, mean: Tensor, var: Tensor
) -> Tensor:
    """BatchNorm with a layer's weight and bias and the given statistics (*S, d): h (N, *S, d) ->
    the same shape. Without BatchNorms in the network, h itself."""
    if not len(backbone.batch_norms):
        return h
    norm = backbone.batch_norms[layer]
    # for the type checker: a ModuleList does not say what it holds
    assert isinstance(norm, nn.BatchNorm1d)
    scale = norm.weight * (var + norm.eps).rsqrt()
    return h * scale + (norm.bias - mean * scale)


def batch_statistics(h: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (biased, as BatchNorm normalises) over the nodes: (N, *S, d) -> two (*S,
    d)."""
    mean = h.mean(0)
    # torch's var over the rows takes 20 times as long on a CPU
    return mean, (h - mean).square_().mean(0)
