"""Low-rank adapters that subtract the representation bias of merging. Every task has one per layer
and one after the readout.

Source: G-Merging, eq. 2 (node level) and eq. 4 (graph level): H <- H - f(H) with
f(H) = relu(H W_down) W_up, without bias terms.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from models.data.batch import GraphBatch, mean_readout
from models.networks.base import LayeredNetwork, LayeredShape, SiteHook


class Adapter(nn.Module):
    """Low-rank bottleneck f(h) = relu(h W_down) W_up.

    `down` (d, r) is initialised like a linear layer and `up` (r, d) with zeros, so that f is zero
    before training.
    """

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(dim, rank).uniform_(-(dim**-0.5), dim**-0.5))
        self.up = nn.Parameter(torch.zeros(rank, dim))

    @property
    def is_active(self) -> bool:
        """False if f is zero for all inputs by its weights: for every rank component the column of
        `down` or the row of `up` is zero."""
        return bool(((self.down != 0).any(0) & (self.up != 0).any(1)).any())

    def forward(self, h: Tensor) -> Tensor:
        """Compute the bias f(h), which the caller subtracts: (*, d) -> (*, d)."""
        return (h @ self.down).relu() @ self.up


@dataclass(frozen=True)
class LayerOutputs:
    """Intermediate outputs of one pass, at which alignment compares teacher and student.

    Attributes:
        convolutions: L tensors (N, d), the output of each layer's convolution after its adapter and
            before its BatchNorm.
        graph_embedding: (G, d), the readout after the graph adapter; input of the head.
    """

    convolutions: tuple[Tensor, ...]
    graph_embedding: Tensor


class TaskAdapters(nn.Module):
    """The L node adapters, the graph adapter and the BatchNorm statistics of one task.

    The statistics are measured on the task's unlabelled training graphs and stored, so that a
    prediction does not depend on the rest of its batch.

    Attributes:
        sites: L + 1 adapters: after layers 0 to L - 1, then after the readout.
        norm_mean, norm_var: (L, d), BatchNorm statistics by layer.
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
        """Sites with an active adapter: 0 to L - 1 for layers, L for the graph adapter."""
        return tuple(k for k, site in enumerate(self.sites) if cast(Adapter, site).is_active)

    def correct(self, site: int, h: Tensor) -> Tensor:
        """Subtract the bias at a site (0 to L - 1 for layers, L for the graph adapter):
        h (*, d) -> h - f(h) (*, d)."""
        corrected: Tensor = h - self.sites[site](h)
        return corrected

    def forward(self, backbone: LayeredNetwork, batch: GraphBatch) -> LayerOutputs:
        """Run a merged backbone with this task's adapters and BatchNorm statistics."""
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
    """Run a backbone and record its intermediate outputs.

    `correct` and `normalise` are hooks of `LayeredNetwork.forward`; `correct` is also applied to
    the readout, as site L.
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
    """Normalise h (N, *S, d) by a layer's BatchNorm with the given statistics (*S, d). Returns h
    itself if the network has no BatchNorm."""
    if not len(backbone.batch_norms):
        return h
    norm = backbone.batch_norms[layer]
    # for the type checker: items of a ModuleList are of type Module
    assert isinstance(norm, nn.BatchNorm1d)
    scale = norm.weight * (var + norm.eps).rsqrt()
    return h * scale + (norm.bias - mean * scale)


def batch_statistics(h: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and biased variance over the nodes, as BatchNorm does: (N, *S, d) -> two tensors
    (*S, d)."""
    mean = h.mean(0)
    # `torch.var` over rows takes 20 times as long on a CPU.
    return mean, (h - mean).square_().mean(0)
