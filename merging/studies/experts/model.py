"""A mixture of graph experts: the competence of an expert for a graph, routing by it, and one
merged expert in place of several.

Liu et al., "Enhanced Expert Merging for Mixture-of-Experts in Graph Foundation Models" (NeurIPS
2025), on AnyGraph's mixture (Xia and Huang 2024, arXiv:2408.10700): competence psi_i, the k best
experts I, alpha = softmax(psi_I), theta_bar = sum_i alpha_i theta_i, and one forward with
theta_bar.
"""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from models.data.batch import GraphBatch
from models.errors import CheckpointError, InvalidInputError
from models.networks.pyg import GraphNetwork, GraphNetworkConfig
from models.ops.segment import segment_count, segment_mean

TEMPERATURE = 0.2
"""Divides the cosine between two nodes, so that scores lie in [-5, 5]."""
_NEVER = -1e4
"""The score of a pair that is masked. Finite, because the gradient of a log-sum over -inf only is
NaN."""


def edge_loss(h: Tensor, batch: GraphBatch) -> Tensor:
    """Compute the loss of link prediction of every graph: the cross-entropy of an edge's target
    among all nodes of the graph.

    loss = mean over edges (i, j) of log(sum over nodes k != i of exp(s_ik)) - s_ij, with s = cosine
    / 0.2. Nothing is drawn, and neither the other graphs of a batch nor the order of the nodes
    matters. AnyGraph uses drawn nodes and dot products; a cosine does not reward an expert for
    large outputs.

    Args:
        h: (N, d) node embeddings.
        batch: the G graphs.

    Returns:
        (G,), 0 for a graph without edges.
    """
    source, target = batch.edge_index
    counts = segment_count(batch.batch, batch.num_graphs)
    position = torch.arange(len(h)) - (counts.cumsum(0) - counts)[batch.batch]
    padded = h.new_zeros((batch.num_graphs, int(counts.max()), h.shape[1]))
    padded[batch.batch, position] = F.normalize(h, dim=-1)
    slots = torch.arange(padded.shape[1])
    ignored = (slots >= counts[:, None])[:, None, :] | torch.eye(len(slots), dtype=torch.bool)
    scores = (padded @ padded.mT / TEMPERATURE).masked_fill(ignored, _NEVER)
    against = scores.logsumexp(-1)[batch.batch[source], position[source]]
    return segment_mean(
        against - scores[batch.batch[source], position[source], position[target]],
        batch.batch[source],
        batch.num_graphs,
    )


@torch.no_grad()
def competence(expert: nn.Module, batch: GraphBatch) -> Tensor:
    """Compute the competence psi of an expert for every graph, (G,): minus the loss of its
    training, at most 0. It depends on the graph and the expert only."""
    return -edge_loss(expert(batch), batch)


def route(psi: Tensor, k: int) -> Tensor:
    """Compute the routing weights alpha: the softmax over the k largest of psi, 0 elsewhere; of
    equal numbers the first is chosen: (K,) -> (K,).

    Raises:
        InvalidInputError: k is not from 1 to K, or psi is not finite.
    """
    if not 1 <= k <= len(psi) or not bool(psi.isfinite().all()):
        raise InvalidInputError(
            f"route: got k = {k} and psi = {psi.tolist()}, expected k from 1 to {len(psi)} and"
            " finite numbers"
        )
    best = psi.argsort(descending=True, stable=True)[:k]
    return torch.zeros_like(psi).index_copy(0, best, psi[best].softmax(0))


def merge_experts(states: Sequence[dict[str, Tensor]], alpha: Tensor) -> dict[str, Tensor]:
    """Merge experts, theta_bar = sum_i alpha_i theta_i; experts of weight 0 are not read. Gradients
    flow to the states.

    Args:
        states: parameters of K experts, by name.
        alpha: (K,) weights.

    Returns:
        theta_bar, by parameter name.

    Raises:
        CheckpointError: the experts differ in names or shapes.
        InvalidInputError: the numbers of weights and experts differ, or no weight is above 0.
    """
    if alpha.shape != (len(states),) or not bool((alpha > 0).any()):
        raise InvalidInputError(
            f"alpha: got {alpha.tolist()}, expected one weight for each of {len(states)} experts,"
            " and one above 0"
        )
    shapes = [{key: value.shape for key, value in state.items()} for state in states]
    if any(shape != shapes[0] for shape in shapes):
        raise CheckpointError(
            "got experts that differ in names or shapes, expected experts of one shape"
        )
    chosen = alpha.nonzero().flatten().tolist()
    return {
        key: torch.stack([alpha[i] * states[i][key] for i in chosen]).sum(0) for key in states[0]
    }


class ExpertBank(nn.Module):
    """Experts of one shape with a common initialisation, so that their weights can be averaged.

    Attributes:
        names: of the domains, in the order of their experts.
        experts: K `GraphNetwork`.
    """

    def __init__(self, config: GraphNetworkConfig, names: Sequence[str], seed: int) -> None:
        super().__init__()
        self.names = tuple(names)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            first = GraphNetwork(config)
        self.experts = nn.ModuleList(deepcopy(first) for _ in self.names)

    def without(self, name: str) -> "ExpertBank":
        """Return a bank of the other experts, which share their parameters with this one."""
        kept = [i for i, expert in enumerate(self.names) if expert != name]
        bank = ExpertBank.__new__(ExpertBank)
        nn.Module.__init__(bank)
        bank.names = tuple(self.names[i] for i in kept)
        bank.experts = nn.ModuleList(self.experts[i] for i in kept)
        return bank

    def states(self) -> list[dict[str, Tensor]]:
        """Return the parameters of every expert by name, not copies of them."""
        return [dict(expert.named_parameters()) for expert in self.experts]

    def competence(self, batch: GraphBatch) -> Tensor:
        """Compute psi of every expert for every graph, (K, G), by K forward passes."""
        return torch.stack([competence(expert, batch) for expert in self.experts])

    def ensemble(self, alpha: Tensor, batch: GraphBatch) -> Tensor:
        """Compute the ensemble sum_i alpha_i output_i, (N, d), by a forward pass for every expert
        with a weight above 0."""
        return torch.stack(
            [alpha[i] * self.experts[i](batch) for i in alpha.nonzero().flatten().tolist()]
        ).sum(0)

    def merged(self, alpha: Tensor, batch: GraphBatch) -> Tensor:
        """Merge the experts, and compute the output of theta_bar, (N, d), by one forward pass."""
        output: Tensor = functional_call(
            self.experts[0], merge_experts(self.states(), alpha), (batch,)
        )
        return output
