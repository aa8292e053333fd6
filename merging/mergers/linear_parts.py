"""The linear parts of each layer: what GNNMerge solves, and on which inputs.

A part gives `Z W` of what enters its layer: W (p, q) is stacked from blocks of the layer's
parameters (weights, bias, the rows of bond tables), and Z (n, p) is known once it is known what
enters, along which edges it moves and with whose attention. Aggregation is linear, so it belongs to
Z and not to W: for a GCN `Z = [A_hat H, A_hat 1, sums of bond features]`. Everything else
(BatchNorm, the bond tables that enter an MLP) is in no part.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.data.batch import GraphBatch
from models.networks.hu2020 import BackboneConfig
from models.networks.propagation import Propagation
from models.networks.pyg import GraphNetworkConfig
from models.ops.segment import segment_count, segment_softmax
from models.ops.sparse import Pattern, spmm

State = dict[str, Tensor]
SLOPE = 0.2
"""Of the leaky relu of both GATs."""


@dataclass(frozen=True, eq=False)
class Wiring:
    """The edges of a batch, as either kind of network wants them.

    Attributes:
        batch: the graphs.
        looped: edges and a loop at each node; row i, column j is the message from j to i.
        bare: without the loops.
        bonds: the same with bond features; None for graphs that have none.
    """

    batch: GraphBatch
    looped: Pattern
    bare: Pattern
    bonds: Propagation | None

    @classmethod
    def of(cls, batch: GraphBatch) -> "Wiring":
        """Sort the edges by target."""
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
class View:
    """A layer at work on a batch.

    Attributes:
        layer: whose parameters.
        h: (N, d_in) what enters.
        wiring: along which edges.
        teacher: the layer whose attention weighs the edges, where it is another's.
    """

    layer: Any
    h: Tensor
    wiring: Wiring
    teacher: "View | None" = None

    @property
    def alpha(self) -> Tensor:
        """(E', heads) attention on the edges with loops."""
        return self.teacher.own_alpha if self.teacher else self.own_alpha

    @cached_property
    def own_alpha(self) -> Tensor:
        """(E', heads) by the layer's own parameters."""
        bonds, edges = self.wiring.bonds, self.wiring.looped
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
        """(N, heads, d) W h of a GAT."""
        linear = self.layer.lin if hasattr(self.layer, "lin") else self.layer.weight_linear
        x: Tensor = linear(self.h)
        return x.view(len(x), self.layer.heads, -1)


@dataclass(frozen=True)
class Part:
    """A linear part of a layer.

    Attributes:
        name: for people.
        blocks: rows of W from top to bottom, each as the name of a parameter and what gives a view
            (rows, q) of it.
        inputs: the rows Z (n, p) of a batch; one for each node, or for each edge with loops.
        per_edge: whether the rows are edges.
    """

    name: str
    blocks: tuple[tuple[str, Callable[[Tensor], Tensor]], ...]
    inputs: Callable[[View], Tensor]
    per_edge: bool = False

    def weight(self, state: State, prefix: str) -> Tensor:
        """W (p, q) float64 of the layer whose parameters' names start so."""
        return torch.cat([view(state[prefix + key]) for key, view in self.blocks]).double()

    def write(self, state: State, prefix: str, weight: Tensor) -> None:
        """Put W into the layer's parameters, in place."""
        views = [view(state[prefix + key]) for key, view in self.blocks]
        for target, block in zip(views, weight.split([len(each) for each in views]), strict=True):
            target.copy_(block)


def linear_parts(config: BackboneConfig | GraphNetworkConfig) -> tuple[Part, ...]:
    """The parts of each layer, in the order in which they are computed."""
    if config.kind == "gat":
        return tuple(part for head in range(2) for part in _gat(head, config.hidden_dim))
    if config.kind == "pyg_gat":
        return tuple(
            part
            for head in range(config.heads)
            for part in _pyg_gat(head, config.hidden_dim // config.heads)
        )
    return _FIXED[config.kind]


def convolved(view: View) -> Tensor:
    """The output of the whole layer, (N, d), before BatchNorm."""
    edges = view.wiring.bonds or view.wiring.batch.edge_index
    out: Tensor = view.layer(view.h, edges)
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


def _bonded(view: View, weights: Tensor) -> Tensor:
    """[A H, A 1, A E] for one weight of each edge, (N, d + 1 + 9)."""
    bonds = view.wiring.bonds
    assert bonds is not None  # only the networks of Hu et al. ask, and their graphs have them
    moved = bonds.aggregate(weights, torch.cat([view.h, _ones(view.h)], 1))
    return torch.cat([moved, bonds.edge_feature_sums(weights)], 1)


def _weighted(view: View) -> Tensor:
    return _bonded(view, view.layer.edge_weights(view.wiring.bonds, view.h.dtype))


def _attended(head: int, view: View) -> Tensor:
    return _bonded(view, view.alpha[:, head].contiguous())


def _pyg_gcn_inputs(view: View) -> Tensor:
    edges = view.wiring.looped
    scale = segment_count(edges.rows, edges.size).to(view.h.dtype).rsqrt()
    return torch.cat([spmm(scale[edges.rows] * scale[edges.cols], view.h, edges), _ones(view.h)], 1)


def _pyg_sage_inputs(view: View) -> Tensor:
    edges = view.wiring.bare
    share = segment_count(edges.rows, edges.size).clamp(min=1).to(view.h.dtype).reciprocal()
    return torch.cat([spmm(share[edges.rows], view.h, edges), view.h, _ones(view.h)], 1)


def _pyg_summed(view: View) -> Tensor:
    edges = view.wiring.bare
    own: Tensor = (1 + view.layer.eps) * view.h
    return spmm(view.h.new_ones(len(edges.rows)), view.h, edges) + own


def _gin_summed(view: View) -> Tensor:
    summed: Tensor = view.layer.messages(view.h, view.wiring.bonds)
    return summed


def _mlp_inputs(summed: Callable[[View], Tensor], first: str, view: View) -> Tensor:
    z = summed(view)
    z = view.layer.get_submodule(first)(z).relu() if first else z
    return torch.cat([z, _ones(z)], 1)


def _pyg_attended(head: int, view: View) -> Tensor:
    return torch.cat(
        [spmm(view.alpha[:, head].contiguous(), view.h, view.wiring.looped), _ones(view.h)], 1
    )


def scored_edges(head: int, view: View) -> Tensor:
    """[x_i, x_j + e_ij] of a head for each edge with loops, (E', 2d): times the attention vector it
    is the score before the leaky relu."""
    edges, bonds, x = view.wiring.looped, view.wiring.bonds, view.transformed()[:, head]
    sent = x[edges.cols]
    if bonds:
        part = slice(head * x.shape[1], (head + 1) * x.shape[1])
        sent = (
            sent
            + view.layer.edge_embedding1.weight[bonds.bond_type, part]
            + view.layer.edge_embedding2.weight[bonds.bond_direction, part]
        )
    return torch.cat([x[edges.rows], sent], 1)


# --- the table ---


def _mlp(summed: Callable[[View], Tensor], name: str) -> tuple[Part, ...]:
    return (
        Part(f"{name}.0", _linear(f"{name}.0"), partial(_mlp_inputs, summed, "")),
        Part(f"{name}.2", _linear(f"{name}.2"), partial(_mlp_inputs, summed, f"{name}.0")),
    )


_FIXED: dict[str, tuple[Part, ...]] = {
    "gcn": (Part("linear", (*_linear("linear"), *_TABLES), _weighted),),
    "graphsage": (Part("linear", (*_linear("linear"), *_TABLES), _weighted),),
    "gin": _mlp(_gin_summed, "mlp"),
    "pyg_gcn": (Part("lin", (("lin.weight", _transposed), ("bias", _row)), _pyg_gcn_inputs),),
    "pyg_sage": (
        Part(
            "lin",
            (("lin_l.weight", _transposed), ("lin_r.weight", _transposed), ("lin_l.bias", _row)),
            _pyg_sage_inputs,
        ),
    ),
    "pyg_gin": _mlp(_pyg_summed, "nn"),
}


def _gat(head: int, dim: int) -> tuple[Part, Part]:
    """Hu et al.'s: heads are averaged, and the bias after that is in no part. The bias of W moves
    with the messages, as the bond tables do."""
    own = slice(head * dim, (head + 1) * dim)
    blocks = (
        ("weight_linear.weight", lambda weight: weight[own].T),
        ("weight_linear.bias", lambda bias: bias[own][None]),
        ("edge_embedding1.weight", lambda table: table[:, own]),
        ("edge_embedding2.weight", lambda table: table[:, own]),
    )
    attention = (("att", lambda vector: vector[0, head][:, None]),)
    return Part(f"head{head}", blocks, partial(_attended, head)), Part(
        f"attention{head}", attention, partial(scored_edges, head), per_edge=True
    )


def _pyg_gat(head: int, dim: int) -> tuple[Part, Part]:
    own = slice(head * dim, (head + 1) * dim)
    blocks = (("lin.weight", lambda weight: weight[own].T), ("bias", lambda bias: bias[own][None]))
    attention = (
        ("att_dst", lambda vector: vector[0, head][:, None]),
        ("att_src", lambda vector: vector[0, head][:, None]),
    )
    return Part(f"head{head}", blocks, partial(_pyg_attended, head)), Part(
        f"attention{head}", attention, partial(scored_edges, head), per_edge=True
    )
