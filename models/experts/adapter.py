"""Low-rank adapters that take away what merging added: one per layer and one after the readout, for
each task.

Source: G-Merging, eq. 2 (node level) and eq. 4 (graph level): H <- H - f(H), f(H) = relu(H W_down)
    W_up, no bias.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from models.data.batch import GraphBatch, mean_readout
from models.networks.hu2020 import Backbone, BackboneConfig, SiteHook
from models.networks.pyg import GraphNetwork, GraphNetworkConfig


class Adapter(nn.Module):
    """f(h) = relu(h W_down) W_up. `down` (d, r) starts as a linear layer does; `up` (r, d) starts
    at zero, so that nothing is subtracted at first."""

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(dim, rank).uniform_(-(dim**-0.5), dim**-0.5))
        self.up = nn.Parameter(torch.zeros(rank, dim))

    @property
    def is_active(self) -> bool:
        """Whether it can subtract anything: one of its r products has a factor in both tensors."""
        return bool(((self.down != 0).any(0) & (self.up != 0).any(1)).any())

    def forward(self, h: Tensor) -> Tensor:
        """What is to be subtracted: (*, d) -> (*, d)."""
        return (h @ self.down).relu() @ self.up


@dataclass(frozen=True)
class LayerOutputs:
    """What one pass leaves behind.

    Attributes:
        convolutions: L tensors (N, d), each layer's convolution after its adapter and before its
            BatchNorm: where teacher and student are compared.
        graph_embedding: (G, d), the readout after the graph adapter: what the head reads.
    """

    convolutions: tuple[Tensor, ...]
    graph_embedding: Tensor


class TaskAdapters(nn.Module):
    """All that one task adds to a merged backbone, its head aside: L node adapters, one graph
    adapter, and BatchNorm statistics of its own.

    The statistics are those of the task's stream on its training molecules (no labels), so that a
    prediction never depends on its batch.
    """

    norm_mean: Tensor
    norm_var: Tensor

    def __init__(self, config: BackboneConfig | GraphNetworkConfig, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.sites = nn.ModuleList(
            Adapter(config.hidden_dim, rank) for _ in range(config.num_layers + 1)
        )
        self.register_buffer("norm_mean", torch.zeros(config.num_layers, config.hidden_dim))
        self.register_buffer("norm_var", torch.ones(config.num_layers, config.hidden_dim))

    @property
    def active_sites(self) -> tuple[int, ...]:
        """Sites (layer 0 to L - 1, L for the graph) whose adapter can subtract anything."""
        return tuple(k for k, site in enumerate(self.sites) if cast(Adapter, site).is_active)

    def correct(self, site: int, h: Tensor) -> Tensor:
        """Subtract the adapter of a site (layer 0 to L - 1, or L for the graph): (*, d) -> (*,
        d)."""
        corrected: Tensor = h - self.sites[site](h)
        return corrected

    def forward(self, backbone: Backbone | GraphNetwork, batch: GraphBatch) -> LayerOutputs:
        """The task's own stream through a merged backbone, with the stored statistics."""
        return trace(
            backbone,
            batch,
            self.correct,
            lambda layer, h: apply_norm(
                backbone, layer, h, self.norm_mean[layer], self.norm_var[layer]
            ),
        )


def trace(
    backbone: Backbone | GraphNetwork,
    batch: GraphBatch,
    correct: SiteHook | None = None,
    normalise: SiteHook | None = None,
) -> LayerOutputs:
    """One pass that keeps the layers' outputs; for the hooks see `Backbone.forward`, `correct` also
    gets the readout as site L."""
    convolutions: list[Tensor] = []

    def kept(layer: int, h: Tensor) -> Tensor:
        convolutions.append(correct(layer, h) if correct else h)
        return convolutions[-1]

    readout = mean_readout(backbone(batch, kept, normalise), batch)
    return LayerOutputs(
        tuple(convolutions), correct(len(convolutions), readout) if correct else readout
    )


def apply_norm(
    backbone: Backbone | GraphNetwork, layer: int, h: Tensor, mean: Tensor, var: Tensor
) -> Tensor:
    """BatchNorm of a layer (its own weight and bias) with the given statistics (*S, d): h (N, *S,
    d) -> the same; as it is where there is none."""
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
