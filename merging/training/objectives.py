"""Self-supervised objectives on unlabelled molecules: context prediction and edge prediction.

Hu et al. 2020, "Strategies for Pre-training Graph Neural Networks", arXiv:1905.12265.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from merging.config.base import Count, Section
from models.data.batch import GraphBatch
from models.errors import InvalidInputError
from models.networks.hu2020 import Backbone, BackboneConfig
from models.ops.segment import segment_count, segment_max, segment_mean


class ContextPredictionConfig(Section):
    """Does this context surround this neighbourhood? (Hu et al. 2020, section 3.1.1; their
    chemistry settings.)

    Attributes:
        inner_hops, outer_hops: the context of an atom are the atoms more than `inner_hops` (r1) and
            at most `outer_hops` (r2) bonds away. Its neighbourhood has the radius K, the number of
            layers of the backbone.
    """

    kind: Literal["contextpred"]
    inner_hops: Count = 4
    outer_hops: Count = 7


class EdgePredictionConfig(Section):
    """Are these two atoms bonded? (Hamilton et al. 2017, as a baseline of Hu et al. 2020.)"""

    kind: Literal["edgepred"]


@dataclass(frozen=True)
class PairScores:
    """Logits of two things belonging together.

    Attributes:
        positive: (P,) of pairs that do belong together.
        negative: (Q,) of pairs that do not.
    """

    positive: Tensor
    negative: Tensor

    def loss(self) -> Tensor:
        """Binary cross-entropy, each kind of pair averaged by itself."""
        return F.softplus(-self.positive).mean() + F.softplus(self.negative).mean()

    def accuracy(self) -> Tensor:
        """Share of pairs on the right side of 0, each kind averaged by itself: chance is 0.5."""
        return ((self.positive > 0).double().mean() + (self.negative < 0).double().mean()) / 2


class ContextPrediction(nn.Module):
    """Scores of an atom's embedding in its neighbourhood with the mean embedding of context
    anchors: its own, and those of the next molecule.

    Anchors are the atoms that neighbourhood and context share; they are embedded by a second
    network of r2 - r1 layers, which sees only the context. One centre is drawn for each molecule. A
    molecule whose context is empty is left out.
    """

    def __init__(self, backbone: BackboneConfig, config: ContextPredictionConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(backbone)
        self.context = Backbone(
            backbone.model_copy(update={"num_layers": config.outer_hops - config.inner_hops})
        )

    def forward(self, batch: GraphBatch) -> PairScores:
        """Scores of P = Q molecules.

        Raises:
            InvalidInputError: fewer than two molecules have a context.
        """
        sizes = segment_count(batch.batch, batch.num_graphs)
        centres = sizes.cumsum(0) - sizes + _draw_below(sizes)
        parts = split_context(
            batch,
            centres,
            self.backbone.config.num_layers,
            self.config.inner_hops,
            self.config.outer_hops,
        )
        if len(parts.centres) < 2:
            raise InvalidInputError(
                f"got {len(parts.centres)} molecules with an atom more than"
                f" {self.config.inner_hops} bonds from the drawn one in a batch of"
                f" {batch.num_graphs}, expected at least 2"
            )
        own = self.backbone(parts.neighbourhood)[parts.centres]
        anchors = self.context(parts.context)[parts.anchors]
        contexts = segment_mean(anchors, parts.context.batch[parts.anchors], len(own))
        return PairScores(
            _scaled_product(own, contexts), _scaled_product(own, contexts.roll(-1, 0))
        )


class EdgePrediction(nn.Module):
    """Scores of bonded atoms, and of as many pairs of atoms of the same molecule that are not
    bonded.

    As in Hu et al., the bonds to be predicted are not hidden from the network. Non-bonded pairs are
    drawn evenly, with replacement.
    """

    def __init__(self, backbone: BackboneConfig) -> None:
        super().__init__()
        self.backbone = Backbone(backbone)

    def forward(self, batch: GraphBatch) -> PairScores:
        """Scores of P bonds and Q pairs; Q < P where a molecule has no two atoms that are not
        bonded.

        Raises:
            InvalidInputError: no bond, or no pair that is not bonded.
        """
        bonds = batch.edge_index[:, batch.edge_index[0] < batch.edge_index[1]]
        others = draw_nonadjacent(batch, bonds)
        if not others.numel():
            raise InvalidInputError(
                f"got {bonds.shape[1]} bonds and no other pair of atoms in a batch of"
                f" {batch.num_graphs}, expected larger molecules"
            )
        h = self.backbone(batch)
        positive, negative = (
            _scaled_product(h[pairs[0]], h[pairs[1]]) for pairs in (bonds, others)
        )
        return PairScores(positive, negative)


@dataclass(frozen=True)
class ContextParts:
    """What context prediction looks at, for the P molecules of a batch whose context is not empty.

    Attributes:
        neighbourhood: induced subgraphs of the atoms at most K bonds from each centre.
        context: induced subgraphs of the ring.
        centres: (P,) into the atoms of `neighbourhood`.
        anchors: (A,) into the atoms of `context`: those that are in the neighbourhood too.
    """

    neighbourhood: GraphBatch
    context: GraphBatch
    centres: Tensor
    anchors: Tensor


def split_context(
    batch: GraphBatch, centres: Tensor, radius: int, inner: int, outer: int
) -> ContextParts:
    """Neighbourhoods (distance <= radius) and contexts (inner < distance <= outer) of one centre in
    each molecule, centres (G,) into the atoms.

    So does Hu et al.'s code; inner < radius makes the atoms at inner + 1 bonds anchors.
    """
    distance = hop_distances(batch, centres, max(radius, outer))
    in_context = (distance > inner) & (distance <= outer)
    kept = segment_count(batch.batch[in_context], batch.num_graphs) > 0
    near = (distance <= radius) & kept[batch.batch]
    return ContextParts(
        neighbourhood=_induced(batch, near, kept),
        context=_induced(batch, in_context, kept),
        centres=_numbers(near)[centres[kept]],
        anchors=torch.nonzero(distance[in_context] <= radius).flatten(),
    )


def hop_distances(batch: GraphBatch, centres: Tensor, hops: int) -> Tensor:
    """Bonds between each atom and its molecule's centre, (N,) int64; hops + 1 where there are more
    or no path. `centres` (G,) into the atoms.

    Every centre starts with `hops` steps to go, and each sweep over the edges hands on one less:
    all molecules at once.
    """
    source, target = batch.edge_index
    to_go = torch.full((batch.num_nodes,), -1.0, device=batch.x.device)
    to_go[centres] = float(hops)
    for _ in range(hops):
        to_go = torch.maximum(to_go, segment_max(to_go[source] - 1, target, batch.num_nodes))
    return hops - to_go.long()


def draw_nonadjacent(batch: GraphBatch, pairs: Tensor) -> Tensor:
    """For each of `pairs` (2, P) two different atoms of the same molecule without an edge between
    them, drawn evenly: (2, Q).

    Q < P where a molecule has no such atoms. Edges must not repeat. Draws from torch's CPU
    generator.

    The pairs (u, v) of each molecule are numbered. The r-th number that is taken neither by an edge
    nor by u = v is r plus the taken numbers before it, and a binary search finds how many these
    are: nothing is drawn in vain, and no table of all pairs is made.
    """
    sizes = segment_count(batch.batch, batch.num_graphs)
    first_atom, first_pair = sizes.cumsum(0) - sizes, (sizes**2).cumsum(0) - sizes**2
    loops = torch.arange(batch.num_nodes, device=batch.x.device)
    u, v = torch.cat([batch.edge_index, loops.expand(2, -1)], dim=1)
    graph = batch.batch[u]
    taken = (
        (first_pair[graph] + (u - first_atom[graph]) * sizes[graph] + v - first_atom[graph])
        .sort()
        .values
    )
    free = sizes**2 - segment_count(graph, batch.num_graphs)
    owner = batch.batch[pairs[0]]
    owner = owner[free[owner] > 0]
    rank = (free.cumsum(0) - free)[owner] + _draw_below(free[owner])
    number = (
        rank
        + torch.searchsorted(
            taken - torch.arange(len(taken), device=taken.device), rank, right=True
        )
        - first_pair[owner]
    )
    return first_atom[owner] + torch.stack([number // sizes[owner], number % sizes[owner]])


def _scaled_product(left: Tensor, right: Tensor) -> Tensor:
    """Inner products of rows (P, d), by the root of d: (P,).

    Hu et al. do not divide. But what comes out of a BatchNorm of width 300 gives logits of standard
    deviation 17, the first steps then do nothing but shrink them to zero, and six hundred steps
    later context prediction here was still at chance (accuracy 0.50; divided, 0.55 after eighty).
    """
    return (left * right).sum(1) / math.sqrt(left.shape[1])


def _draw_below(bounds: Tensor) -> Tensor:
    """A whole number from 0 to below each bound, drawn on the CPU so that a seed gives the same on
    every device."""
    return torch.randint(2**62, bounds.shape).to(bounds.device) % bounds


def _numbers(kept: Tensor) -> Tensor:
    """(N,) new numbers of the rows that are kept; those of the others mean nothing."""
    return kept.cumsum(0) - 1


def _induced(batch: GraphBatch, atoms: Tensor, graphs: Tensor) -> GraphBatch:
    """The subgraphs of some atoms (N,) bool, in the molecules (G,) bool that they belong to."""
    edges = atoms[batch.edge_index].all(0)
    return GraphBatch(
        x=batch.x[atoms],
        edge_index=_numbers(atoms)[batch.edge_index[:, edges]],
        edge_attr=batch.edge_attr[edges],
        batch=_numbers(graphs)[batch.batch[atoms]],
        num_graphs=int(graphs.sum()),
    )


Objective = ContextPrediction | EdgePrediction


def make_objective(
    backbone: BackboneConfig, config: ContextPredictionConfig | EdgePredictionConfig
) -> Objective:
    """The objective with fresh weights (torch's generator)."""
    return (
        ContextPrediction(backbone, config)
        if isinstance(config, ContextPredictionConfig)
        else EdgePrediction(backbone)
    )
