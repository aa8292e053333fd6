"""Low-rank adapters that take away what merging added: one per layer and one after the readout, for each task.

Source: G-Merging, eq. 2 (node level) and eq. 4 (graph level): H <- H - f(H), f(H) = relu(H W_down) W_up, no bias.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from models.backbone import Backbone, BackboneConfig, SiteHook
from models.graph import GraphBatch
from models.graph_network import GraphNetwork, GraphNetworkConfig
from models.propagation import mean_readout


class Adapter(nn.Module):
    """f(h) = relu(h W_down) W_up. `down` (d, r) starts as a linear layer does; `up` (r, d) starts at zero, so that nothing is subtracted at first."""

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
        convolutions: L tensors (N, d), each layer's convolution after its adapter and before its BatchNorm: where teacher and student are compared.
        graph_embedding: (G, d), the readout after the graph adapter: what the head reads.
    """

    convolutions: tuple[Tensor, ...]
    graph_embedding: Tensor


class TaskAdapters(nn.Module):
    """All that one task adds to a merged backbone, its head aside: L node adapters, one graph adapter, and BatchNorm statistics of its own.

    The statistics are those of the task's stream on its training molecules (no labels), so that a prediction never depends on its batch.
    """

    norm_mean: Tensor
    norm_var: Tensor

    def __init__(self, config: BackboneConfig | GraphNetworkConfig, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.sites = nn.ModuleList(Adapter(config.hidden_dim, rank) for _ in range(config.num_layers + 1))
        self.register_buffer("norm_mean", torch.zeros(config.num_layers, config.hidden_dim))
        self.register_buffer("norm_var", torch.ones(config.num_layers, config.hidden_dim))

    @property
    def active_sites(self) -> tuple[int, ...]:
        """Sites (layer 0 to L - 1, L for the graph) whose adapter can subtract anything."""
        return tuple(k for k, site in enumerate(self.sites) if cast(Adapter, site).is_active)

    def correct(self, site: int, h: Tensor) -> Tensor:
        """Subtract the adapter of a site (layer 0 to L - 1, or L for the graph): (*, d) -> (*, d)."""
        corrected: Tensor = h - self.sites[site](h)
        return corrected

    def forward(self, backbone: Backbone | GraphNetwork, batch: GraphBatch) -> LayerOutputs:
        """The task's own stream through a merged backbone, with the stored statistics."""
        return trace(backbone, batch, self.correct, lambda layer, h: apply_norm(backbone, layer, h, self.norm_mean[layer], self.norm_var[layer]))


def trace(backbone: Backbone | GraphNetwork, batch: GraphBatch, correct: SiteHook | None = None, normalise: SiteHook | None = None) -> LayerOutputs:
    """One pass that keeps the layers' outputs; for the hooks see `Backbone.forward`, `correct` also gets the readout as site L."""
    convolutions: list[Tensor] = []

    def kept(layer: int, h: Tensor) -> Tensor:
        convolutions.append(correct(layer, h) if correct else h)
        return convolutions[-1]

    readout = mean_readout(backbone(batch, kept, normalise), batch)
    return LayerOutputs(tuple(convolutions), correct(len(convolutions), readout) if correct else readout)


def apply_norm(backbone: Backbone | GraphNetwork, layer: int, h: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """BatchNorm of a layer (its own weight and bias) with the given statistics (*S, d): h (N, *S, d) -> the same; as it is where there is none."""
    if not len(backbone.batch_norms):
        return h
    norm = backbone.batch_norms[layer]
    assert isinstance(norm, nn.BatchNorm1d)  # for the type checker: a ModuleList does not say what it holds
    scale = norm.weight * (var + norm.eps).rsqrt()
    return h * scale + (norm.bias - mean * scale)


def batch_statistics(h: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (biased, as BatchNorm normalises) over the nodes: (N, *S, d) -> two (*S, d)."""
    mean = h.mean(0)
    return mean, (h - mean).square_().mean(0)  # torch's var over the rows takes 20 times as long on a CPU


class AdapterBank(nn.Module):
    """The adapters of K experts, stacked so that all of them are one product down and one product up.

    Attributes:
        down: (L+1, d, K, r).
        up: (L+1, K, r, d).
        gram: (L+1, K, K, r, r), W_up_i W_up_j^T: with it, inner products of expert outputs cost r numbers per node instead of d.
        norm_mean, norm_var: (L, K, d).
    """

    down: Tensor
    up: Tensor
    gram: Tensor
    norm_mean: Tensor
    norm_var: Tensor

    def __init__(self, experts: Sequence[TaskAdapters]) -> None:
        super().__init__()
        num_sites = len(experts[0].sites)
        stacked = {
            "down": torch.stack([torch.stack([each.sites[s].down for each in experts], dim=1) for s in range(num_sites)]),  # type: ignore[misc]
            "up": torch.stack([torch.stack([each.sites[s].up for each in experts]) for s in range(num_sites)]),  # type: ignore[misc]
            "norm_mean": torch.stack([each.norm_mean for each in experts], dim=1),
            "norm_var": torch.stack([each.norm_var for each in experts], dim=1),
        }
        stacked["gram"] = torch.einsum("sird,sjqd->sijrq", stacked["up"], stacked["up"])
        for name, value in stacked.items():
            self.register_buffer(name, value.detach())

    def project(self, site: int, h: Tensor) -> Tensor:
        """z_i = relu(h W_down_i) of all experts: (N, T, d) -> (N, T, K, r)."""
        down = self.down[site]
        return (h @ down.flatten(1)).relu().view(*h.shape[:-1], *down.shape[1:])

    def mix(self, site: int, z: Tensor, weights: Tensor) -> Tensor:
        """sum_i w_i f_i(h) as one product of rank K r: z (N, T, K, r), weights (N, T, K) -> (N, T, d)."""
        return (z * weights.unsqueeze(-1)).flatten(-2) @ self.up[site].flatten(0, 1)

    def fuse(self, site: int, h: Tensor, weights: Tensor, sizes: Sequence[int]) -> Tensor:
        """One adapter for each graph and stream, its parameters the experts' mean: relu(h W_down') W_up' with W' = sum_i w_i W_i.

        Args:
            h: (N, T or 1, d), the rows of a graph together.
            weights: (G, T, K).
            sizes: G numbers, how many rows each graph has.

        Returns:
            (N, T, d).
        """
        down, up = self.down[site].movedim(1, 0), self.up[site]
        rows = h.expand(-1, weights.shape[1], -1).transpose(0, 1).split(list(sizes), 1)
        # A graph at a time, so that its parameters stay in the cache. To project all rows by all experts is the same and took 1.3 times as long.
        parts = [
            (own @ (w @ down.flatten(1)).unflatten(1, down.shape[1:])).relu_() @ (w @ up.flatten(1)).unflatten(1, up.shape[1:])
            for own, w in zip(rows, weights, strict=True)
        ]
        return torch.cat(parts, 1).transpose(0, 1)

    def own(self, site: int, h: Tensor, experts: Tensor) -> Tensor:
        """f_k(h) of each stream's own expert: h (N, T or 1, d), experts (T,) -> (N, T, d)."""
        z = torch.einsum("ntd,dtr->ntr", h.expand(-1, len(experts), -1), self.down[site][:, experts]).relu()
        return torch.einsum("ntr,trd->ntd", z, self.up[site][experts])
