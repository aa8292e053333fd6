"""The router: routing weights of experts, computed from their outputs without trained parameters.

For target task k, w = softmax_i(-D(f_i(H), f_k(H)) / temperature), where D is the TWD at node sites
and the L1 distance at the graph site (G-Merging, routing). Distances at node sites are computed in
rank space: with z_i = relu(H W_down_i) and M_ij = W_up_i W_up_j^T, the inner product of two outputs
is z_i M_ij z_j^T, which takes r numbers per edge instead of d.
"""

from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models.transport.problem import SinkhornParams, Solver, Support
from models.transport.solve import solve_transport


class RouterConfig(BaseModel):
    """Options of the router; travel in the artifact's manifest.

    Attributes:
        temperature: of the softmax at node sites, in units of the TWD.
        graph_temperature: of the softmax at the graph site, in units of the mean absolute
            difference.
        mixed_layers: number of last layers that mix experts, besides the graph site; earlier layers
            use the target task's adapter. None for all layers, as published.
        top_k: number of nearest experts with a weight above 0, the target expert included. None for
            all.
        candidates: number of other experts that the mixture of a task considers when served: those
            listed in `Manifest.nearest`. All others get weight 0. Meant for many experts together
            with `top_k`; without `top_k` the candidates' weights grow by what the others lose. None
            for all.
        solver, epsilon, tolerance, max_iters: see `models.transport.solve`.
        debias: use the Sinkhorn divergence instead of the entropic cost; solves two more transport
            problems.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: Annotated[float, Field(gt=0)] = 0.1
    graph_temperature: Annotated[float, Field(gt=0)] = 0.03
    mixed_layers: Annotated[int, Field(ge=0)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    candidates: Annotated[int, Field(ge=1)] | None = None
    solver: Solver = "sinkhorn"
    epsilon: Annotated[float, Field(gt=0)] = 0.1
    tolerance: Annotated[float, Field(gt=0)] = 0.1
    max_iters: Annotated[int, Field(ge=1)] = 100
    debias: bool = False

    def mixes(self, layer: int, num_layers: int) -> bool:
        """Return True if a layer (0 to num_layers - 1) mixes experts."""
        return self.mixed_layers is None or layer >= num_layers - self.mixed_layers


def node_distances(
    z: Tensor, gram: Tensor, experts: Tensor, support: Support, config: RouterConfig
) -> Tensor:
    """Compute the TWD between the outputs of every expert and of each stream's target expert.

    Args:
        z: (N, T, K, r), projections of all experts in T streams (`AdapterBank.project`).
        gram: (K, K, r, r), `NodeAdapterBank.gram`.
        experts: (T,), index of each stream's target expert.
        support: pairs of nodes between which mass may move.
        config: solver and its options.

    Returns:
        Distances (G, T, K).
    """
    streams = torch.arange(len(experts), device=experts.device)
    target = z[:, streams, experts]
    # M_ik z_k, whose inner product with z_i is that of the outputs i and k
    gram_target = torch.einsum("tirq,ntq->ntir", gram[:, experts].movedim(1, 0), target)
    square = torch.einsum("ntir,irq,ntiq->nti", z, torch.einsum("iirq->irq", gram), z).clamp(min=0)
    target_square = square[:, streams, experts].unsqueeze(-1)
    params = SinkhornParams(config.epsilon, config.tolerance, config.max_iters)
    cross = solve_transport(
        _cost(z, gram_target, square, target_square, support),
        support,
        solver=config.solver,
        params=params,
    )
    if not config.debias or config.solver == "exact":
        return cross.cost
    gram_self = torch.einsum("iirq,ntiq->ntir", gram, z)
    self_costs = solve_transport(
        _cost(z, gram_self, square, square, support), support, params=params
    ).regularized_cost
    target_self_cost = self_costs[:, streams, experts].unsqueeze(-1)
    return cross.regularized_cost - (self_costs + target_self_cost) / 2


def _cost(
    left: Tensor, right: Tensor, left_square: Tensor, right_square: Tensor, support: Support
) -> Tensor:
    """Compute (1 - cos) / 2 on the support, (E, T, K), from rank-space vectors (N, T, K, r) and
    squared norms (N, T, K or 1)."""
    rows, cols = support.rows, support.cols
    left_square, right_square = (
        left_square.index_select(0, rows),
        right_square.index_select(0, cols),
    )
    return cosine_cost_of_products(
        torch.linalg.vecdot(left.index_select(0, rows), right.index_select(0, cols)),
        left_square,
        right_square,
    )


def cosine_cost_of_products(inner: Tensor, left_square: Tensor, right_square: Tensor) -> Tensor:
    """Compute (1 - cos) / 2 in [0, 1] of pairs of vectors from their inner products and squared
    norms, all of one shape. Two zero vectors have cost 0, a zero and a nonzero one 1/2."""
    scale = (left_square * right_square).sqrt()
    tiny = torch.finfo(scale.dtype).tiny ** 0.5
    cosine = torch.where(scale > tiny, inner / scale.clamp(min=tiny), 0.0)
    # Two zero outputs are equal, as in `models.transport.twd`; relu often makes an adapter's output
    # zero at a node.
    both_zero = (left_square == 0) & (right_square == 0)
    return torch.where(both_zero, 0.0, (1 - cosine).clamp(0, 2) / 2)


def graph_distances(outputs: Tensor, experts: Tensor) -> Tensor:
    """Compute the mean absolute difference between the outputs of every expert and of each stream's
    target expert: outputs (G, T, K, d), experts (T,) -> (G, T, K)."""
    target = outputs[:, torch.arange(len(experts), device=experts.device), experts].unsqueeze(2)
    return (outputs - target).abs().mean(-1)


def routing_weights(distances: Tensor, temperature: float, top_k: int | None = None) -> Tensor:
    """Compute softmax(-distance / temperature) over the `top_k` nearest experts, or over all for
    None: (G, T, K) -> (G, T, K). Other experts get weight 0; the K weights sum to 1."""
    scores = -distances / temperature
    if top_k is not None and top_k < scores.shape[-1]:
        dropped = scores.topk(scores.shape[-1] - top_k, dim=-1, largest=False).indices
        scores = scores.scatter(-1, dropped, float("-inf"))
    return scores.softmax(-1)
