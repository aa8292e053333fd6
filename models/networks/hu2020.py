"""The four backbones of Hu et al. 2020 (GIN, GCN, GraphSAGE, GAT) with their checkpoint keys, and
a GIN whose layers are one linear map.

Node tensors have the shape (N, *S, d), where S is empty or a dimension of streams (one per task):
weights are shared by all streams.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer
from torch import Tensor, nn
from torch.nn import functional as F

from models.data.batch import GraphBatch
from models.data.molecule import (
    NUM_ATOM_TYPES,
    NUM_BOND_DIRECTIONS,
    NUM_BOND_TYPES,
    NUM_CHIRALITY_TAGS,
)
from models.networks.base import LayeredNetwork, NetworkShape, SiteHook
from models.networks.propagation import Propagation
from models.ops.dropout import fast_dropout
from models.ops.segment import segment_count, segment_softmax
from models.state_dict import load_tensors, read_tensors

BackboneKind = Literal["gin", "gcn", "graphsage", "gat", "gin_linear"]
Readout = Literal["mean", "sum"]
SUM_DIVISOR = 25.0
"""A sum readout is divided by this number of atoms, that of a drug-like molecule, so that sums are
of the size of means."""


class BackboneConfig(NetworkShape):
    """Shape of a backbone; it travels in the artifact's manifest.

    Attributes:
        kind: name of the layers.
        num_layers, hidden_dim: number and width of the layers.
        readout: how a molecule's embedding is computed from those of its atoms: their mean (Hu et
            al. 2020), or their sum divided by `SUM_DIVISOR`, which knows the molecule's size.
    """

    kind: BackboneKind
    num_layers: int = Field(default=5, ge=1)
    hidden_dim: int = Field(default=300, ge=1)
    readout: Readout = "mean"

    @model_serializer(mode="wrap")
    def _without_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the mean readout, so that versions without the field can read the manifest."""
        values: dict[str, Any] = handler(self)
        if self.readout == "mean":
            del values["readout"]
        return values

    @property
    def size(self) -> tuple[int, int]:
        """Number and width of the layers."""
        return self.num_layers, self.hidden_dim

    @property
    def in_dim(self) -> None:
        """None: atoms are looked up in embedding tables."""
        return None


class Convolution(nn.Module):
    """Base of the four layers, with the edge embedding tables (Hu et al. 2020, appendix A)."""

    def __init__(self, edge_dim: int) -> None:
        super().__init__()
        self.edge_embedding1 = nn.Embedding(NUM_BOND_TYPES, edge_dim)
        self.edge_embedding2 = nn.Embedding(NUM_BOND_DIRECTIONS, edge_dim)
        nn.init.xavier_uniform_(self.edge_embedding1.weight)
        nn.init.xavier_uniform_(self.edge_embedding2.weight)

    def edge_table(self) -> Tensor:
        """Stack the embeddings of bond types and directions: (9, d_edge)."""
        return torch.cat([self.edge_embedding1.weight, self.edge_embedding2.weight])

    def edge_weights(self, edges: Propagation, dtype: torch.dtype) -> Tensor:
        """Return the fixed weight of each edge, (E',): 1 unless the layer normalises."""
        return torch.ones(len(edges.source), dtype=dtype, device=edges.source.device)

    def messages(self, h: Tensor, edges: Propagation) -> Tensor:
        """Compute sum_j w_ij (h_j + e_ij): (N, *S, d) -> (N, *S, d)."""
        weights = self.edge_weights(edges, h.dtype)
        bonds = edges.edge_feature_sums(weights) @ self.edge_table()
        return edges.aggregate(weights, h) + bonds.view(len(bonds), *[1] * (h.dim() - 2), -1)


class GINConvolution(Convolution):
    """h_i = MLP(sum_j (h_j + e_ij)), the self-loop included in the sum (no epsilon).

    Source: Xu et al. 2019 in the form of Hu et al. 2020.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))

    def forward(self, h: Tensor, edges: Propagation) -> Tensor:
        """Apply the layer: (N, *S, d) -> (N, *S, d)."""
        out: Tensor = self.mlp(self.messages(h, edges))
        return out


class GINLinearConvolution(Convolution):
    """h_i = sum_j (W h_j + b + e_ij), the self-loop included in the sum.

    Source: Xu et al. 2019, the variant "sum, 1-layer" of their GIN. It costs what a GCN costs and,
    like the GIN, it can count: sums are not normalised.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.linear = nn.Linear(dim, dim)

    def forward(self, h: Tensor, edges: Propagation) -> Tensor:
        """Apply the layer: (N, *S, d) -> (N, *S, d)."""
        return self.messages(self.linear(h), edges)


class GCNConvolution(GINLinearConvolution):
    """h_i = sum_j (deg_i deg_j)^-1/2 (W h_j + b + e_ij).

    Source: Kipf and Welling 2017 in the form of Hu et al. 2020, where the edge term is normalised
    too.
    """

    def edge_weights(self, edges: Propagation, dtype: torch.dtype) -> Tensor:
        """Return 1 / sqrt(deg_i deg_j), (E',); degrees are counted by source, loop included."""
        scale = edges.out_degree().to(dtype).rsqrt()
        return scale[edges.source] * scale[edges.target]


class GraphSAGEConvolution(Convolution):
    """h_i = normalize(mean_j (W h_j + b + e_ij)).

    Source: Hamilton et al. 2017 in the form of Hu et al. 2020.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.linear = nn.Linear(dim, dim)

    def edge_weights(self, edges: Propagation, dtype: torch.dtype) -> Tensor:
        """Return 1 / (number of edges that enter the target, loop included), (E',)."""
        return edges.in_degree().to(dtype).reciprocal()[edges.target]

    def forward(self, h: Tensor, edges: Propagation) -> Tensor:
        """Apply the layer: (N, *S, d) -> (N, *S, d)."""
        return F.normalize(self.messages(self.linear(h), edges), p=2.0, dim=-1)


class GATConvolution(Convolution):
    """h_i = mean_heads sum_j alpha_ij (W h_j + e_ij) + bias.

    The attention is normalised over the edges that leave j, not over those that enter i, as in the
    published checkpoints.

    Source: Velickovic et al. 2018 in the form of Hu et al. 2020.
    """

    heads = 2
    negative_slope = 0.2

    def __init__(self, dim: int) -> None:
        super().__init__(self.heads * dim)
        self.weight_linear = nn.Linear(dim, self.heads * dim)
        self.att = nn.Parameter(torch.empty(1, self.heads, 2 * dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        nn.init.xavier_uniform_(self.att)

    def attention(self, x: Tensor, edges: Propagation) -> Tensor:
        """Compute the attention of each edge: x (N, *S, heads, d) -> (E', *S, heads)."""
        to_target, to_source = self.att[0].chunk(2, dim=-1)
        received = (x * to_target).sum(-1)
        sent = (x * to_source).sum(-1)
        # att . (x_j + e_ij) = att . x_j + att . e_ij, and e_ij is a row of a table: no E x d tensor
        # is made.
        by_type, by_direction = (
            table.weight.view(len(table.weight), self.heads, -1)
            for table in (self.edge_embedding1, self.edge_embedding2)
        )
        bond = (by_type * to_source).sum(-1)[edges.bond_type] + (by_direction * to_source).sum(-1)[
            edges.bond_direction
        ]
        bond = bond.view(len(bond), *[1] * (x.dim() - 3), self.heads)
        scores = F.leaky_relu(
            received[edges.target] + sent[edges.source] + bond, self.negative_slope
        )
        return segment_softmax(scores, edges.source, edges.num_nodes)

    def forward(self, h: Tensor, edges: Propagation) -> Tensor:
        """Apply the layer: (N, *S, d) -> (N, *S, d)."""
        x = self.weight_linear(h).view(*h.shape[:-1], self.heads, -1)
        alpha = self.attention(x, edges)
        flat_alpha, flat_x = alpha.flatten(1), x.flatten(1, -2)
        summed = torch.stack(
            [
                edges.aggregate(flat_alpha[:, k].contiguous(), flat_x[:, k])
                for k in range(flat_x.shape[1])
            ],
            dim=1,
        ).view(x.shape)
        table = self.edge_table().view(-1, self.heads, x.shape[-1])
        bonds = torch.einsum("n...hf,fhd->n...hd", edges.edge_feature_sums(alpha), table)
        return (summed + bonds).mean(-2) + self.bias


_CONVOLUTIONS: dict[BackboneKind, type[Convolution]] = {
    "gin": GINConvolution,
    "gcn": GCNConvolution,
    "graphsage": GraphSAGEConvolution,
    "gat": GATConvolution,
    "gin_linear": GINLinearConvolution,
}


class Backbone(LayeredNetwork):
    """A graph network without readout and head; parameter names are those of Hu et al.'s
    checkpoints."""

    config: BackboneConfig

    def __init__(self, config: BackboneConfig, dropout: float = 0.0) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.config = config
        self.dropout = dropout
        self.x_embedding1 = nn.Embedding(NUM_ATOM_TYPES, dim)
        self.x_embedding2 = nn.Embedding(NUM_CHIRALITY_TAGS, dim)
        nn.init.xavier_uniform_(self.x_embedding1.weight)
        nn.init.xavier_uniform_(self.x_embedding2.weight)
        self.gnns = nn.ModuleList(_CONVOLUTIONS[config.kind](dim) for _ in range(config.num_layers))
        self.batch_norms = nn.ModuleList(nn.BatchNorm1d(dim) for _ in range(config.num_layers))

    def embed(self, batch: GraphBatch) -> Tensor:
        """Embed atom types and chirality tags: (N, d)."""
        out: Tensor = self.x_embedding1(batch.x[:, 0]) + self.x_embedding2(batch.x[:, 1])
        return out

    def activate(self, layer: int, h: Tensor) -> Tensor:
        """Apply relu (not after the last layer) and, in training mode, dropout."""
        if layer < self.config.num_layers - 1:
            h = h.relu()
        return fast_dropout(h, self.dropout) if self.training and self.dropout else h

    def forward(
        self, batch: GraphBatch, correct: SiteHook | None = None, normalise: SiteHook | None = None
    ) -> Tensor:
        """Node embeddings of the last layer, (N, *S, d): see `LayeredNetwork.forward`. With a sum
        readout they are multiplied by the molecule's number of atoms / `SUM_DIVISOR`."""
        edges = Propagation.from_batch(batch)
        h = self.embed(batch)
        for layer, convolution in enumerate(self.gnns):
            h = convolution(h, edges)
            h = correct(layer, h) if correct else h
            h = normalise(layer, h) if normalise else self.batch_norms[layer](h)
            h = self.activate(layer, h)
        if self.config.readout == "sum":
            # The mean over a molecule's atoms, which all users of the network take, is then the sum
            # of the unscaled embeddings, divided by SUM_DIVISOR.
            sizes = segment_count(batch.batch, batch.num_graphs).to(h.dtype) / SUM_DIVISOR
            h = h * sizes[batch.batch].view(-1, *[1] * (h.dim() - 1))
        return h


def make_backbone(tensors: dict[str, Tensor], config: BackboneConfig, origin: str) -> Backbone:
    """Build a backbone from a state dict, in evaluation mode.

    Args:
        tensors: with the names of Hu et al.'s checkpoints.
        config: shape of the backbone.
        origin: where the tensors are from, for errors.

    Raises:
        CheckpointError: see `load_tensors`.
    """
    backbone = Backbone(config)
    load_tensors(backbone, tensors, origin)
    return backbone.eval()


def load_backbone(path: Path, config: BackboneConfig) -> Backbone:
    """Load a backbone from a checkpoint in Hu et al.'s layout, in evaluation mode.

    Raises:
        CheckpointError: see `read_tensors` and `load_tensors`.
    """
    return make_backbone(read_tensors(path), config, str(path))
