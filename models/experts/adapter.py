"""Low-rank adapters that subtract the representation bias of merging: one per layer and one after
the readout, for each task.

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
    """Low-rank adapter f(h) = relu(h W_down) W_up, without bias.

    `down` (d, r) is initialised as a linear layer, `up` (r, d) as zero, so that nothing is
    subtracted at first.
    """

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(dim, rank).uniform_(-(dim**-0.5), dim**-0.5))
        self.up = nn.Parameter(torch.zeros(rank, dim))

    @property
    def is_active(self) -> bool:
        """True if f is not zero everywhere: one of its r products has nonzero factors in `down` and
        `up`.
        """
        return bool(((self.down != 0).any(0) & (self.up != 0).any(1)).any())

    def forward(self, h: Tensor) -> Tensor:
        """Compute f(h), which is to be subtracted from h: (*, d) -> (*, d)."""
        return (h @ self.down).relu() @ self.up


@dataclass(frozen=True)
class LayerOutputs:
    """Outputs of the layers in one pass.

    Attributes:
        convolutions: L tensors (N, d), the output of each convolution after its adapter and before
            its BatchNorm: where teacher and student are compared.
        graph_embedding: (G, d), the readout after the graph adapter: input of the head.
    """

    convolutions: tuple[Tensor, ...]
    graph_embedding: Tensor


class TaskAdapters(nn.Module):
    """Everything that one task adds to a merged backbone besides its head: L node adapters, a graph
    adapter, and BatchNorm statistics.

    The statistics are those of the task's stream on its training graphs (without labels), so that a
    prediction does not depend on its batch.

    Attributes:
        sites: L + 1 adapters, one per layer and one for the graph.
        norm_mean, norm_var: (L, d).
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
        """Sites (layer 0 to L - 1, L for the graph) whose adapter is active."""
        return tuple(k for k, site in enumerate(self.sites) if cast(Adapter, site).is_active)

    def correct(self, site: int, h: Tensor) -> Tensor:
        """Subtract the adapter of a site, layer 0 to L - 1 or L for the graph: (*, d) -> (*, d)."""
        corrected: Tensor = h - self.sites[site](h)
        return corrected

    def forward(self, backbone: Backbone | GraphNetwork, batch: GraphBatch) -> LayerOutputs:
        """Run a batch through a merged backbone with the task's adapters and stored statistics."""
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

    def keep(layer: int, h: Tensor) -> Tensor:
        convolutions.append(correct(layer, h) if correct else h)
        return convolutions[-1]

    readout = mean_readout(backbone(batch, keep, normalise), batch)
    return LayerOutputs(
        tuple(convolutions), correct(len(convolutions), readout) if correct else readout
    )


def apply_norm(
    backbone: Backbone | GraphNetwork, layer: int, h: Tensor, mean: Tensor, var: Tensor
) -> Tensor:
    """Apply a layer's BatchNorm weight and bias with given statistics.

    Args:
        backbone: the network; without BatchNorm `h` is returned unchanged.
        layer: 0 to L - 1.
        h: (N, *S, d).
        mean, var: (*S, d).

    Returns:
        (N, *S, d).
    """
    if not len(backbone.batch_norms):
        return h
    norm = backbone.batch_norms[layer]
    # for the type checker: a ModuleList is untyped
    assert isinstance(norm, nn.BatchNorm1d)
    scale = norm.weight * (var + norm.eps).rsqrt()
    return h * scale + (norm.bias - mean * scale)


def batch_statistics(h: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and variance (biased, as BatchNorm uses) over the nodes: (N, *S, d) -> two (*S,
    d).
    """
    mean = h.mean(0)
    # torch.var over the rows takes 20 times as long on a CPU
    return mean, (h - mean).square_().mean(0)
