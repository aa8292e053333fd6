"""Low-rank adapters that subtract the representation bias of merging, and streams: the passes of
the backbone that tasks read from. A stream has an adapter per layer or none, a task has one after
the readout.

Source: G-Merging, eq. 2 (node level) and eq. 4 (graph level): H <- H - f(H) with
f(H) = relu(H W_down) W_up, without bias terms.
"""

from dataclasses import dataclass
from functools import partial
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


class Stream(nn.Module):
    """What one pass of the backbone needs besides its weights: node adapters, or none, and
    BatchNorm statistics. One or more tasks read from a stream.

    The statistics are measured on unlabelled training graphs and stored, so that a prediction does
    not depend on the rest of its batch.

    Attributes:
        name: of a stream that tasks share; empty for the stream of a single task.
        rank: of the node adapters; 0 if there are none.
        sites: L adapters, by layer.
        norm_mean, norm_var: (L, d), BatchNorm statistics by layer.
    """

    norm_mean: Tensor
    norm_var: Tensor

    def __init__(self, config: LayeredShape, rank: int = 0, name: str = "") -> None:
        super().__init__()
        self.name, self.rank = name, rank
        self.sites = _adapters(config.hidden_dim, rank, config.num_layers)
        self.register_buffer("norm_mean", torch.zeros(config.num_layers, config.hidden_dim))
        self.register_buffer("norm_var", torch.ones(config.num_layers, config.hidden_dim))

    @property
    def node_adapters(self) -> list[Adapter]:
        """The adapters after layers 0 to L - 1."""
        return [cast(Adapter, site) for site in self.sites[: len(self.norm_mean)]]

    @property
    def active_sites(self) -> tuple[int, ...]:
        """Sites with an active adapter, in the order of `sites`."""
        return tuple(k for k, site in enumerate(self.sites) if cast(Adapter, site).is_active)

    def correct(self, site: int, h: Tensor) -> Tensor:
        """Subtract the bias at a site: h (*, d) -> h - f(h) (*, d)."""
        corrected: Tensor = h - self.sites[site](h)
        return corrected

    def normalise(self, backbone: LayeredNetwork, layer: int, h: Tensor) -> Tensor:
        """Apply a layer's BatchNorm with the statistics of this stream."""
        return apply_norm(backbone, layer, h, self.norm_mean[layer], self.norm_var[layer])


class TaskAdapters(Stream):
    """The stream of a single task together with the task's graph adapter: L node adapters, the
    graph adapter and BatchNorm statistics.

    Attributes:
        sites: L + 1 adapters: after layers 0 to L - 1, then after the readout.
    """

    def __init__(self, config: LayeredShape, rank: int) -> None:
        super().__init__(config)
        self.rank = rank
        self.sites = _adapters(config.hidden_dim, rank, config.num_layers + 1)

    @property
    def graph_adapter(self) -> Adapter:
        """The adapter after the readout."""
        return cast(Adapter, self.sites[-1])

    def forward(self, backbone: LayeredNetwork, batch: GraphBatch) -> LayerOutputs:
        """Run a merged backbone with this task's adapters and BatchNorm statistics."""
        return trace(backbone, batch, self.correct, partial(self.normalise, backbone))


def stream_of_backbone(backbone: LayeredNetwork, name: str) -> Stream:
    """Build a shared stream without node adapters from the BatchNorm running statistics that a
    backbone holds itself; of one without BatchNorm the statistics are not read."""
    stream = Stream(backbone.config, name=name)
    for layer, norm in enumerate(backbone.batch_norms):
        stream.norm_mean[layer] = norm.get_buffer("running_mean")
        stream.norm_var[layer] = norm.get_buffer("running_var")
    return stream


def _adapters(dim: int, rank: int, count: int) -> nn.ModuleList:
    return nn.ModuleList(Adapter(dim, rank) for _ in range(count))


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
