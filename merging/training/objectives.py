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
    """Context prediction: classify whether a context surrounds a neighbourhood (Hu et al. 2020,
    section 3.1.1, with their settings for chemistry).

    Attributes:
        inner_hops, outer_hops: the context of an atom are the atoms more than `inner_hops` (r1) and
            at most `outer_hops` (r2) bonds away. Its neighbourhood has the radius K, the number of
            layers of the backbone.
    """

    kind: Literal["contextpred"]
    inner_hops: Count = 4
    outer_hops: Count = 7


class EdgePredictionConfig(Section):
    """Edge prediction: classify whether two atoms are bonded (Hamilton et al. 2017; a baseline of
    Hu et al. 2020)."""

    kind: Literal["edgepred"]


@dataclass(frozen=True)
class PairScores:
    """Logits of a binary classification of pairs.

    Attributes:
        positive: (P,), of pairs that belong together.
        negative: (Q,), of pairs that do not.
    """

    positive: Tensor
    negative: Tensor

    def loss(self) -> Tensor:
        """Compute the binary cross-entropy, the sum of the means over positive and negative
        pairs."""
        return F.softplus(-self.positive).mean() + F.softplus(self.negative).mean()

    def accuracy(self) -> Tensor:
        """Compute the balanced accuracy: the mean of the shares of positive pairs above 0 and of
        negative pairs below 0. Chance is 0.5."""
        return ((self.positive > 0).double().mean() + (self.negative < 0).double().mean()) / 2


class ContextPrediction(nn.Module):
    """Scores an atom's embedding, computed from its neighbourhood, against the mean embedding of
    context anchors: those of its molecule (positive) and those of the next molecule (negative).

    Anchors are the atoms that neighbourhood and context share; they are embedded by a second
    network of r2 - r1 layers, whose input is the context only. One centre is drawn per molecule. A
    molecule with an empty context is left out.
    """

    def __init__(self, backbone: BackboneConfig, config: ContextPredictionConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(backbone)
        self.context = Backbone(
            backbone.model_copy(update={"num_layers": config.outer_hops - config.inner_hops})
        )

    def forward(self, batch: GraphBatch) -> PairScores:
        """Compute the scores of the P = Q molecules of a batch that have a context.

        Raises:
            InvalidInputError: fewer than two molecules have a context.
        """
        sizes = segment_count(batch.batch, batch.num_graphs)
        centres = sizes.cumsum(0) - sizes + _draw_below(sizes)
        radius, config = self.backbone.config.num_layers, self.config
        graphs = split_context(batch, centres, radius, config.inner_hops, config.outer_hops)
        if len(graphs.centres) < 2:
            raise InvalidInputError(
                f"got {len(graphs.centres)} molecules with an atom more than"
                f" {self.config.inner_hops} bonds from the drawn one in a batch of"
                f" {batch.num_graphs}, expected at least 2"
            )
        atoms = self.backbone(graphs.neighbourhood)[graphs.centres]
        anchors = self.context(graphs.context)[graphs.anchors]
        contexts = segment_mean(anchors, graphs.context.batch[graphs.anchors], len(atoms))
        return PairScores(
            _scaled_product(atoms, contexts), _scaled_product(atoms, contexts.roll(-1, 0))
        )


class EdgePrediction(nn.Module):
    """Scores pairs of bonded atoms, and as many pairs of atoms of the same molecule that are not
    bonded.

    As in Hu et al., the bonds to be predicted are part of the network's input. Non-bonded pairs are
    drawn uniformly, with replacement.
    """

    def __init__(self, backbone: BackboneConfig) -> None:
        super().__init__()
        self.backbone = Backbone(backbone)

    def forward(self, batch: GraphBatch) -> PairScores:
        """Compute the scores of the P bonds of a batch and of Q non-bonded pairs; Q < P if all
        atoms of some molecule are bonded to each other.

        Raises:
            InvalidInputError: there is no bond, or no non-bonded pair.
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
class ContextGraphs:
    """The inputs of context prediction for the P molecules of a batch that have a context.

    Attributes:
        neighbourhood: induced subgraphs of the atoms at most K bonds from their centre.
        context: induced subgraphs of the atoms of the context.
        centres: (P,), indices of the centres among the atoms of `neighbourhood`.
        anchors: (A,), indices among the atoms of `context` of those that are in the neighbourhood
            too.
    """

    neighbourhood: GraphBatch
    context: GraphBatch
    centres: Tensor
    anchors: Tensor


def split_context(
    batch: GraphBatch, centres: Tensor, radius: int, inner: int, outer: int
) -> ContextGraphs:
    """Extract the neighbourhood (distance <= radius) and the context (inner < distance <= outer) of
    one centre in every molecule, as Hu et al.'s code does.

    Args:
        batch: G molecules.
        centres: (G,), indices of the centres among the atoms of the batch.
        radius: K, in bonds; inner < radius makes the atoms at inner + 1 bonds anchors.
        inner, outer: r1 and r2, in bonds.
    """
    distance = hop_distances(batch, centres, max(radius, outer))
    in_context = (distance > inner) & (distance <= outer)
    kept = segment_count(batch.batch[in_context], batch.num_graphs) > 0
    near = (distance <= radius) & kept[batch.batch]
    return ContextGraphs(
        neighbourhood=_induced(batch, near, kept),
        context=_induced(batch, in_context, kept),
        centres=_numbers(near)[centres[kept]],
        anchors=torch.nonzero(distance[in_context] <= radius).flatten(),
    )


def hop_distances(batch: GraphBatch, centres: Tensor, hops: int) -> Tensor:
    """Count the bonds between every atom and the centre of its molecule, in all molecules at once.

    A centre starts with `hops` steps left, and every sweep over the edges passes one step fewer on.

    Args:
        batch: G molecules.
        centres: (G,), indices of the centres among the atoms of the batch.
        hops: the largest distance that is resolved.

    Returns:
        (N,) int64; hops + 1 for farther atoms and those without a path.
    """
    source, target = batch.edge_index
    steps_left = torch.full((batch.num_nodes,), -1.0, device=batch.x.device)
    steps_left[centres] = float(hops)
    for _ in range(hops):
        passed_on = segment_max(steps_left[source] - 1, target, batch.num_nodes)
        steps_left = torch.maximum(steps_left, passed_on)
    return hops - steps_left.long()


def draw_nonadjacent(batch: GraphBatch, pairs: Tensor) -> Tensor:
    """For every pair draw two different atoms of the same molecule that have no edge between them,
    uniformly: (2, P) -> (2, Q).

    Q < P if some molecule has no such atoms. Edges must not repeat. Draws from torch's CPU
    generator.

    The pairs (u, v) of a molecule are numbered. The r-th number that belongs neither to an edge nor
    to u = v is r plus the number of excluded pairs before it, which a binary search finds: no draw
    is rejected, and no table of all pairs is built.
    """
    sizes = segment_count(batch.batch, batch.num_graphs)
    first_atom, first_pair = sizes.cumsum(0) - sizes, (sizes**2).cumsum(0) - sizes**2
    loops = torch.arange(batch.num_nodes, device=batch.x.device)
    u, v = torch.cat([batch.edge_index, loops.expand(2, -1)], dim=1)
    graph = batch.batch[u]
    numbers = first_pair[graph] + (u - first_atom[graph]) * sizes[graph] + v - first_atom[graph]
    excluded = numbers.sort().values
    free = sizes**2 - segment_count(graph, batch.num_graphs)
    owner = batch.batch[pairs[0]]
    owner = owner[free[owner] > 0]
    rank = (free.cumsum(0) - free)[owner] + _draw_below(free[owner])
    allowed_before = excluded - torch.arange(len(excluded), device=excluded.device)
    skipped = torch.searchsorted(allowed_before, rank, right=True)
    number = rank + skipped - first_pair[owner]
    return first_atom[owner] + torch.stack([number // sizes[owner], number % sizes[owner]])


def _scaled_product(left: Tensor, right: Tensor) -> Tensor:
    """Inner products of rows (P, d), divided by sqrt(d): (P,).

    Hu et al. do not divide. But outputs of a BatchNorm of width 300 give logits with a standard
    deviation of 17; the first steps then only shrink them to zero, and after six hundred steps
    context prediction was still at chance (accuracy 0.50; divided, 0.55 after eighty).
    """
    return (left * right).sum(1) / math.sqrt(left.shape[1])


def _draw_below(bounds: Tensor) -> Tensor:
    """Random integers from 0 to below every bound, drawn on the CPU so that a seed gives the same
    numbers on every device."""
    return torch.randint(2**62, bounds.shape).to(bounds.device) % bounds


def _numbers(kept: Tensor) -> Tensor:
    """(N,), the new indices of the rows that are kept; those of the others have no meaning."""
    return kept.cumsum(0) - 1


def _induced(batch: GraphBatch, atoms: Tensor, graphs: Tensor) -> GraphBatch:
    """The subgraphs induced by some atoms (N,) bool, of the molecules (G,) bool that contain
    them."""
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
    """Return the network of an objective, initialised from torch's generator."""
    return (
        ContextPrediction(backbone, config)
        if isinstance(config, ContextPredictionConfig)
        else EdgePrediction(backbone)
    )
