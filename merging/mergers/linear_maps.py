"""The linear maps of each GNN layer, for which GNNMerge solves: their weights and their inputs.

A linear map computes `Z W`: W (p, q) is stacked from blocks of the layer's parameters (weights,
bias, rows of bond tables), and Z (n, p) follows from the layer's input, its edges and its attention
weights. Aggregation is linear, so it belongs to Z and not to W: for a GCN `Z = [A_hat H, A_hat 1,
sums of bond features]`. All other parameters (BatchNorm, the bond tables that enter an MLP) belong
to no linear map.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from merging.mergers.task_vector import State
from models.data.batch import GraphBatch
from models.networks.propagation import Propagation
from models.ops.segment import segment_count, segment_softmax
from models.ops.sparse import Pattern, spmm

SLOPE = 0.2
"""Negative slope of the leaky ReLU in both kinds of GAT."""


@dataclass(frozen=True, eq=False)
class BatchEdges:
    """The edges of a batch in the forms that the two kinds of networks need.

    Attributes:
        batch: the graphs.
        looped: edges and a self-loop at each node; row i, column j is the message from j to i.
        unlooped: the edges without self-loops.
        bonds: the edges with their bond features; None for graphs that have none.
    """

    batch: GraphBatch
    looped: Pattern
    unlooped: Pattern
    bonds: Propagation | None

    @classmethod
    def of(cls, batch: GraphBatch) -> "BatchEdges":
        """Sort the edges of a batch by their target."""
        source, target = batch.edge_index[:, batch.edge_index[1].argsort(stable=True)]
        loops = torch.arange(batch.num_nodes, device=target.device)
        everything = torch.cat([target, loops])
        order = everything.argsort(stable=True)
        looped = Pattern(everything[order], torch.cat([source, loops])[order], batch.num_nodes)
        bonds = Propagation.from_batch(batch) if batch.edge_attr.shape[1] else None
        return cls(
            batch,
            bonds.pattern if bonds else looped,
            Pattern(target, source, batch.num_nodes),
            bonds,
        )


@dataclass(frozen=True, eq=False)
class LayerCall:
    """A GNN layer applied to a batch.

    Attributes:
        layer: the layer's module.
        h: (N, d_in) its input node embeddings.
        edges: the edges of the batch.
        teacher: the call whose attention weights are used in place of the layer's; None for its
            own.
    """

    layer: Any
    h: Tensor
    edges: BatchEdges
    teacher: "LayerCall | None" = None

    @property
    def alpha(self) -> Tensor:
        """(E', heads), the attention weights on the edges with self-loops."""
        return self.teacher.layer_alpha if self.teacher else self.layer_alpha

    @cached_property
    def layer_alpha(self) -> Tensor:
        """(E', heads), the attention weights by the layer's parameters."""
        bonds, edges = self.edges.bonds, self.edges.looped
        if bonds:
            alpha: Tensor = self.layer.attention(self.transformed(), bonds)
            return alpha
        vectors = [
            torch.cat([self.layer.att_dst[0, head], self.layer.att_src[0, head]])
            for head in range(self.layer.heads)
        ]
        scores = torch.stack(
            [scored_edges(head, self) @ vector for head, vector in enumerate(vectors)], 1
        )
        return segment_softmax(F.leaky_relu(scores, SLOPE), edges.rows, edges.size)

    def transformed(self) -> Tensor:
        """Apply a GAT's linear transformation W h: (N, heads, d)."""
        linear = self.layer.lin if hasattr(self.layer, "lin") else self.layer.weight_linear
        x: Tensor = linear(self.h)
        return x.view(len(x), self.layer.heads, -1)


@dataclass(frozen=True)
class LinearMap:
    """A linear map of a layer, Z W.

    Attributes:
        name: its name in records.
        blocks: blocks of W from top to bottom: the name of a parameter, and the function that takes
            the view (rows, q) of it.
        inputs: computes Z (n, p) of a batch, one row for each node, or for each edge with
            self-loops.
        per_edge: whether the rows of Z are edges.
    """

    name: str
    blocks: tuple[tuple[str, Callable[[Tensor], Tensor]], ...]
    inputs: Callable[[LayerCall], Tensor]
    per_edge: bool = False

    def weight(self, state: State, prefix: str) -> Tensor:
        """Stack W (p, q), float64, from the parameters whose names start with `prefix`."""
        return torch.cat([view(state[prefix + key]) for key, view in self.blocks]).double()

    def write(self, state: State, prefix: str, weight: Tensor) -> None:
        """Write the blocks of W into the parameters, in place."""
        views = [view(state[prefix + key]) for key, view in self.blocks]
        for target, block in zip(views, weight.split([len(view) for view in views]), strict=True):
            target.copy_(block)


def linear_maps(config: Any) -> tuple[LinearMap, ...]:
    """Return the linear maps of a layer, in the order of computation, by the network's shape."""
    if config.kind == "gat":
        return tuple(chain.from_iterable(_gat(head, config.hidden_dim) for head in range(2)))
    if config.kind == "pyg_gat":
        width = config.hidden_dim // config.heads
        return tuple(chain.from_iterable(_pyg_gat(head, width) for head in range(config.heads)))
    if config.kind == "pyg_gin":
        return _mlp(_pyg_summed, "nn", config.mlp_layers)
    return _FIXED[config.kind]


def layer_output(call: LayerCall) -> Tensor:
    """Compute the output of a whole layer, (N, d), before BatchNorm and activation."""
    edges = call.edges.bonds or call.edges.batch.edge_index
    out: Tensor = call.layer(call.h, edges)
    return out


# --- views of parameters ---


def _transposed(weight: Tensor) -> Tensor:
    return weight.T


def _row(bias: Tensor) -> Tensor:
    return bias[None]


def _same(table: Tensor) -> Tensor:
    return table


def _linear(key: str) -> tuple[tuple[str, Callable[[Tensor], Tensor]], ...]:
    return (f"{key}.weight", _transposed), (f"{key}.bias", _row)


_TABLES = ("edge_embedding1.weight", _same), ("edge_embedding2.weight", _same)

# --- inputs ---


def _ones(h: Tensor) -> Tensor:
    return h.new_ones(len(h), 1)


def _bonded(call: LayerCall, weights: Tensor) -> Tensor:
    """[A H, A 1, A E] with A given by one weight per edge: (N, d + 1 + 9)."""
    bonds = call.edges.bonds
    assert bonds is not None  # the graphs of Hu et al.'s networks always have bond features
    moved = bonds.aggregate(weights, torch.cat([call.h, _ones(call.h)], 1))
    return torch.cat([moved, bonds.edge_feature_sums(weights)], 1)


def _weighted(call: LayerCall) -> Tensor:
    return _bonded(call, call.layer.edge_weights(call.edges.bonds, call.h.dtype))


def _attended(head: int, call: LayerCall) -> Tensor:
    return _bonded(call, call.alpha[:, head].contiguous())


def _pyg_gcn_inputs(call: LayerCall) -> Tensor:
    edges = call.edges.looped
    scale = segment_count(edges.rows, edges.size).to(call.h.dtype).rsqrt()
    return torch.cat([spmm(scale[edges.rows] * scale[edges.cols], call.h, edges), _ones(call.h)], 1)


def _pyg_sage_inputs(call: LayerCall) -> Tensor:
    edges = call.edges.unlooped
    share = segment_count(edges.rows, edges.size).clamp(min=1).to(call.h.dtype).reciprocal()
    return torch.cat([spmm(share[edges.rows], call.h, edges), call.h, _ones(call.h)], 1)


def _pyg_summed(call: LayerCall) -> Tensor:
    edges = call.edges.unlooped
    self_term: Tensor = (1 + call.layer.eps) * call.h
    return spmm(call.h.new_ones(len(edges.rows)), call.h, edges) + self_term


def _gin_summed(call: LayerCall) -> Tensor:
    summed: Tensor = call.layer.messages(call.h, call.edges.bonds)
    return summed


def _mlp_inputs(
    summed: Callable[[LayerCall], Tensor], name: str, number: int, call: LayerCall
) -> Tensor:
    mlp: Any = call.layer.get_submodule(name)
    z = mlp[: 2 * number](summed(call))  # a Linear and a relu each
    return torch.cat([z, _ones(z)], 1)


def _pyg_attended(head: int, call: LayerCall) -> Tensor:
    return torch.cat(
        [spmm(call.alpha[:, head].contiguous(), call.h, call.edges.looped), _ones(call.h)], 1
    )


def scored_edges(head: int, call: LayerCall) -> Tensor:
    """Compute a head's [x_i, x_j + e_ij] on the edges with self-loops, (E', 2d).

    Times the attention vector this is the score before the leaky ReLU.
    """
    edges, bonds, x = call.edges.looped, call.edges.bonds, call.transformed()[:, head]
    sent = x[edges.cols]
    if bonds:
        columns = slice(head * x.shape[1], (head + 1) * x.shape[1])
        sent = (
            sent
            + call.layer.edge_embedding1.weight[bonds.bond_type, columns]
            + call.layer.edge_embedding2.weight[bonds.bond_direction, columns]
        )
    return torch.cat([x[edges.rows], sent], 1)


# --- the table ---


def _mlp(
    summed: Callable[[LayerCall], Tensor], name: str, layers: int = 2
) -> tuple[LinearMap, ...]:
    return tuple(
        LinearMap(
            f"{name}.{2 * number}",
            _linear(f"{name}.{2 * number}"),
            partial(_mlp_inputs, summed, name, number),
        )
        for number in range(layers)
    )


_FIXED: dict[str, tuple[LinearMap, ...]] = {
    "gcn": (LinearMap("linear", (*_linear("linear"), *_TABLES), _weighted),),
    "gin_linear": (LinearMap("linear", (*_linear("linear"), *_TABLES), _weighted),),
    "graphsage": (LinearMap("linear", (*_linear("linear"), *_TABLES), _weighted),),
    "gin": _mlp(_gin_summed, "mlp"),
    "pyg_gcn": (LinearMap("lin", (("lin.weight", _transposed), ("bias", _row)), _pyg_gcn_inputs),),
    "pyg_sage": (
        LinearMap(
            "lin",
            (("lin_l.weight", _transposed), ("lin_r.weight", _transposed), ("lin_l.bias", _row)),
            _pyg_sage_inputs,
        ),
    ),
}


def _gat(head: int, dim: int) -> tuple[LinearMap, LinearMap]:
    """Hu et al.'s GAT averages its heads, and the bias after that belongs to no linear map. The
    bias of W is aggregated with the messages, as the bond tables are."""
    units = slice(head * dim, (head + 1) * dim)
    blocks = (
        ("weight_linear.weight", lambda weight: weight[units].T),
        ("weight_linear.bias", lambda bias: bias[units][None]),
        ("edge_embedding1.weight", lambda table: table[:, units]),
        ("edge_embedding2.weight", lambda table: table[:, units]),
    )
    values = LinearMap(f"head{head}", blocks, partial(_attended, head))
    return values, _attention(head, "att")


def _pyg_gat(head: int, dim: int) -> tuple[LinearMap, LinearMap]:
    units = slice(head * dim, (head + 1) * dim)
    blocks = (
        ("lin.weight", lambda weight: weight[units].T),
        ("bias", lambda bias: bias[units][None]),
    )
    values = LinearMap(f"head{head}", blocks, partial(_pyg_attended, head))
    return values, _attention(head, "att_dst", "att_src")


def _attention(head: int, *keys: str) -> LinearMap:
    """A head's attention vector, stacked from these parameters, which scores edges."""
    blocks = tuple((key, lambda vector: vector[0, head][:, None]) for key in keys)
    return LinearMap(f"attention{head}", blocks, partial(scored_edges, head), per_edge=True)
