"""The router: weights of the experts per request, from distances between their outputs. It has no
parameters.

For a request on task k, w = softmax_i(-D(f_i(H), f_k(H)) / temperature), where D is the TWD at a
node site and the L1 distance at the graph site (G-Merging, routing). Distances at node sites are
computed in rank space: with z_i = relu(H W_down_i) and M_ij = W_up_i W_up_j^T, the inner product of
two outputs is z_i M_ij z_j^T, so an edge needs r numbers and not d.
"""

from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models.transport.problem import SinkhornParams, Solver, Support
from models.transport.solve import solve_transport


class RouterConfig(BaseModel):
    """Options of the router; they are stored in the artifact's manifest.

    Attributes:
        temperature: of the softmax at node sites, in units of the TWD.
        graph_temperature: of the softmax at the graph site, in units of the mean absolute
            difference.
        mixed_layers: number of last layers that mix, besides the graph site; the layers before them
            use the task's own adapter. None: all, as published.
        top_k: only the k nearest experts count (the task's own expert is always nearest, or equal
            to it); None counts all.
        candidates: in a served artifact, number of experts besides the task's own that are
            considered for a task, the nearest by the manifest (`models.screening`); the others get
            weight 0. Meant for many experts and top_k: without top_k the others' weights are
            missing. None considers all.
        solver, epsilon, tolerance, max_iters: of the transport problem.
        debias: use the Sinkhorn divergence in place of the entropic cost, which takes two more
            solutions for its self terms.
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
    """Compute the TWD between every expert's output and the target expert's, per graph and stream.

    Args:
        z: (N, T, K, r) projections of all experts in T streams.
        gram: (K, K, r, r) products of the experts' `up` matrices.
        experts: (T,) target expert of each stream: that of the stream's task.
        support: support of the batch.
        config: solver and its options.

    Returns:
        (G, T, K).
    """
    streams = torch.arange(len(experts), device=experts.device)
    target = z[:, streams, experts]
    # M_ik z_k: times z_i it is the inner product of the outputs
    cross = torch.einsum("tirq,ntq->ntir", gram[:, experts].movedim(1, 0), target)
    square = torch.einsum("ntir,irq,ntiq->nti", z, torch.einsum("iirq->irq", gram), z).clamp(min=0)
    target_square = square[:, streams, experts].unsqueeze(-1)
    params = SinkhornParams(config.epsilon, config.tolerance, config.max_iters)
    solution = solve_transport(
        _cost(z, cross, square, target_square, support),
        support,
        solver=config.solver,
        params=params,
    )
    if not config.debias or config.solver == "exact":
        return solution.cost
    to_self = torch.einsum("iirq,ntiq->ntir", gram, z)
    self_costs = solve_transport(
        _cost(z, to_self, square, square, support), support, params=params
    ).regularized_cost
    target_self_cost = self_costs[:, streams, experts].unsqueeze(-1)
    return solution.regularized_cost - (self_costs + target_self_cost) / 2


def _cost(
    left: Tensor, right: Tensor, left_square: Tensor, right_square: Tensor, support: Support
) -> Tensor:
    """Compute (1 - cos) / 2 on the support.

    Args:
        left, right: (N, T, K, r) vectors whose inner products are those of the outputs.
        left_square, right_square: (N, T, K or 1) squared norms of the outputs.

    Returns:
        (E, T, K).
    """
    rows, cols = support.rows, support.cols
    left_square = left_square.index_select(0, rows)
    right_square = right_square.index_select(0, cols)
    return cosine_cost_from_gram(
        torch.linalg.vecdot(left.index_select(0, rows), right.index_select(0, cols)),
        left_square,
        right_square,
    )


def cosine_cost_from_gram(inner: Tensor, left_square: Tensor, right_square: Tensor) -> Tensor:
    """Compute the cosine cost (1 - cos) / 2 of pairs of outputs from their inner products.

    Args:
        inner: inner products.
        left_square, right_square: squared norms, of the same shape.

    Returns:
        Costs in [0, 1], of the same shape; 0 for two zero outputs, 1/2 for one.
    """
    scale = (left_square * right_square).sqrt()
    tiny = torch.finfo(scale.dtype).tiny ** 0.5
    cosine = torch.where(scale > tiny, inner / scale.clamp(min=tiny), 0.0)
    # Two zero outputs are equal (relu often silences a whole adapter at a node): cost 0, as in
    # models.transport.twd.
    both_zero = (left_square == 0) & (right_square == 0)
    return torch.where(both_zero, 0.0, (1 - cosine).clamp(0, 2) / 2)


def graph_distances(outputs: Tensor, experts: Tensor) -> Tensor:
    """Compute the mean absolute difference between every expert's output and the target expert's.

    Args:
        outputs: (G, T, K, d).
        experts: (T,) target expert of each stream.

    Returns:
        (G, T, K).
    """
    target = outputs[:, torch.arange(len(experts), device=experts.device), experts].unsqueeze(2)
    return (outputs - target).abs().mean(-1)


def routing_weights(distances: Tensor, temperature: float, top_k: int | None = None) -> Tensor:
    """Compute routing weights: the softmax of -distance / temperature over the k nearest experts.

    Args:
        distances: (G, T, K).
        temperature: in units of the distances.
        top_k: number of nearest experts that count; None for all.

    Returns:
        (G, T, K); each row sums to 1.
    """
    scores = -distances / temperature
    if top_k is not None and top_k < scores.shape[-1]:
        dropped = scores.topk(scores.shape[-1] - top_k, dim=-1, largest=False).indices
        scores = scores.scatter(-1, dropped, float("-inf"))
    return scores.softmax(-1)
