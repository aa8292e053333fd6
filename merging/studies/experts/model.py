"""A mixture of graph experts: how competent each is for a graph, how much it counts, and one merged
expert in place of several.

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
"""Of the cosine between two nodes: scores lie in [-5, 5]."""
_NEVER = -1e4
"""The score of a pair that does not count. Finite, for the gradient of a log-sum of nothing but
-inf is not a number."""


def edge_loss(h: Tensor, batch: GraphBatch) -> Tensor:
    """How badly node embeddings (N, d) tell the edges of each graph, (G,): which of its nodes is at
    the edge's other end, as cross entropy.

    loss = mean over edges (i, j) of log(sum over nodes k != i of exp(s_ik)) - s_ij, with s = cosine
    / 0.2. All nodes of the graph are compared: nothing is drawn, and neither the other graphs of a
    batch nor the order of the nodes counts. A graph without edges has the loss 0, whoever the
    expert. AnyGraph compares with drawn nodes and dot products; a cosine does not reward an expert
    for large outputs.
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
    """psi of an expert for each graph, (G,): minus the loss that it was trained with, so at most 0.
    A number of the graph and the expert alone."""
    return -edge_loss(expert(batch), batch)


def route(psi: Tensor, k: int) -> Tensor:
    """alpha: softmax of the k largest of psi (K,), 0 elsewhere; the earlier of equals comes first.

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
    """theta_bar = sum_i alpha_i theta_i, by parameter name; experts that count 0 are not touched.
    Gradients flow to the states.

    Raises:
        CheckpointError: the experts differ in names or shapes.
        InvalidInputError: another number of weights than of experts, or none above 0.
    """
    if alpha.shape != (len(states),) or not bool((alpha > 0).any()):
        raise InvalidInputError(
            f"alpha: got {alpha.tolist()}, expected one weight for each of {len(states)} experts,"
            " and one above 0"
        )
    shapes = [{key: value.shape for key, value in state.items()} for state in states]
    if any(each != shapes[0] for each in shapes):
        raise CheckpointError(
            "got experts that differ in names or shapes, expected experts of one shape"
        )
    chosen = alpha.nonzero().flatten().tolist()
    return {
        key: torch.stack([alpha[i] * states[i][key] for i in chosen]).sum(0) for key in states[0]
    }


class ExpertBank(nn.Module):
    """Experts of one shape that start from one initialisation, since their weights are to be
    averaged.

    Attributes:
        names: of the domains, one expert each, in order.
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
        """A bank of the other experts, which are shared with this one."""
        kept = [i for i, each in enumerate(self.names) if each != name]
        bank = ExpertBank.__new__(ExpertBank)
        nn.Module.__init__(bank)
        bank.names, bank.experts = (
            tuple(self.names[i] for i in kept),
            nn.ModuleList(self.experts[i] for i in kept),
        )
        return bank

    def states(self) -> list[dict[str, Tensor]]:
        """Parameters of each expert by name: the very ones, not copies."""
        return [dict(expert.named_parameters()) for expert in self.experts]

    def competence(self, batch: GraphBatch) -> Tensor:
        """psi of every expert for every graph, (K, G): K forwards."""
        return torch.stack([competence(expert, batch) for expert in self.experts])

    def ensemble(self, alpha: Tensor, batch: GraphBatch) -> Tensor:
        """sum_i alpha_i output_i, (N, d): a forward for each expert that counts."""
        return torch.stack(
            [alpha[i] * self.experts[i](batch) for i in alpha.nonzero().flatten().tolist()]
        ).sum(0)

    def merged(self, alpha: Tensor, batch: GraphBatch) -> Tensor:
        """The output of theta_bar, (N, d): merging, and one forward."""
        output: Tensor = functional_call(
            self.experts[0], merge_experts(self.states(), alpha), (batch,)
        )
        return output
