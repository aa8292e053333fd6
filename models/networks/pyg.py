"""Backbones for graphs with any numeric node features: PyG's own GCN, SAGE, GIN and GAT layers
behind the interface of `models.networks.base.LayeredNetwork`."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from models.data.batch import GraphBatch
from models.errors import InvalidInputError
from models.networks.base import LayeredNetwork, NetworkShape, SiteHook

GraphNetworkKind = Literal["pyg_gcn", "pyg_sage", "pyg_gin", "pyg_gat"]
_MLP_LAYERS = 2


class GraphNetworkConfig(NetworkShape):
    """Shape of a graph network; it travels in the artifact's manifest.

    Attributes:
        kind: whose layers.
        in_dim: width of what enters the first layer.
        num_layers, hidden_dim: of the layers, all of one width.
        heads: of a GAT, concatenated; hidden_dim is their total width.
        mlp_layers: number of Linears in every layer of a GIN, with relu between them.
        row_normalise: divide each node's features by their sum of absolute values, as is usual for
            bags of words (Kipf and Welling 2017).
    """

    kind: GraphNetworkKind
    in_dim: int = Field(ge=1)
    num_layers: int = Field(default=2, ge=1)
    hidden_dim: int = Field(default=128, ge=1)
    heads: int = Field(default=4, ge=1)
    mlp_layers: int = Field(default=_MLP_LAYERS, ge=2)
    row_normalise: bool = False

    @model_serializer(mode="wrap")
    def _without_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the usual MLP, so that versions without the field can read the manifest."""
        values: dict[str, Any] = handler(self)
        if self.mlp_layers == _MLP_LAYERS:
            del values["mlp_layers"]
        return values

    @property
    def size(self) -> tuple[int, int]:
        """Number and width of the layers."""
        return self.num_layers, self.hidden_dim

    @model_validator(mode="after")
    def _check(self) -> "GraphNetworkConfig":
        if self.kind == "pyg_gat" and self.hidden_dim % self.heads:
            raise ValueError(
                f"got hidden_dim {self.hidden_dim}, expected a multiple of heads, {self.heads}"
            )
        if self.kind != "pyg_gin" and self.mlp_layers != _MLP_LAYERS:
            raise ValueError(f"mlp_layers: got {self.mlp_layers} of {self.kind}, which has no MLP")
        return self


class GraphNetwork(LayeredNetwork):
    """A graph network without readout and head: layers with relu and, in training, dropout between
    them; no BatchNorm."""

    config: GraphNetworkConfig

    def __init__(self, config: GraphNetworkConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.dropout = dropout
        widths = [config.in_dim, *[config.hidden_dim] * config.num_layers]
        self.gnns = nn.ModuleList(
            _convolution(config, width, config.hidden_dim) for width in widths[:-1]
        )
        self.batch_norms = nn.ModuleList()

    def embed(self, batch: GraphBatch) -> Tensor:
        """Prepare node features (N, *S, F) for the first layer, of the same shape.

        Raises:
            InvalidInputError: another number of features than the network takes.
        """
        x = batch.x
        if x.shape[-1] != self.config.in_dim:
            raise InvalidInputError(
                f"x: got {x.shape[-1]} features for each node, expected {self.config.in_dim}"
            )
        return (
            x / x.abs().sum(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
            if self.config.row_normalise
            else x
        )

    def activate(self, layer: int, h: Tensor) -> Tensor:
        """Apply relu and, in training mode, dropout; nothing after the last layer."""
        if layer == self.config.num_layers - 1:
            return h
        return F.dropout(h.relu(), self.dropout, self.training)

    def convolve(self, layer: int, h: Tensor, edge_index: Tensor) -> Tensor:
        """Apply one layer, stream by stream as PyG's GAT takes one: (N, *S, d_in) -> (N, *S, d)."""
        convolution: Any = self.gnns[layer]
        if h.dim() == 2:
            out: Tensor = convolution(h, edge_index)
            return out
        return torch.stack([convolution(stream, edge_index) for stream in h.unbind(1)], dim=1)

    def forward(
        self, batch: GraphBatch, correct: SiteHook | None = None, normalise: SiteHook | None = None
    ) -> Tensor:
        """Compute node embeddings of the last layer, (N, *S, d); `normalise` has no effect, as
        there is no BatchNorm.
        """
        h = F.dropout(self.embed(batch), self.dropout, self.training)
        for layer in range(self.config.num_layers):
            h = self.convolve(layer, h, batch.edge_index)
            h = correct(layer, h) if correct else h
            h = self.activate(layer, h)
        return h


def _convolution(config: GraphNetworkConfig, width: int, out: int) -> nn.Module:
    # imported here: importing PyG takes longer than importing torch, and few need it
    from torch_geometric.nn.conv import GATConv, GCNConv, GINConv, SAGEConv

    makers: dict[GraphNetworkKind, Callable[[], nn.Module]] = {
        "pyg_gcn": lambda: GCNConv(width, out),
        "pyg_sage": lambda: SAGEConv(width, out),
        "pyg_gin": lambda: GINConv(_mlp(width, out, config.mlp_layers)),
        "pyg_gat": lambda: GATConv(width, out // config.heads, config.heads),
    }
    convolution: nn.Module = makers[config.kind]()
    return convolution


def _mlp(width: int, out: int, layers: int) -> nn.Sequential:
    modules: list[nn.Module] = [nn.Linear(width, out)]
    for _ in range(layers - 1):
        modules += [nn.ReLU(), nn.Linear(out, out)]
    return nn.Sequential(*modules)
