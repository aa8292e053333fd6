"""How much each expert counts: weights per request, from the experts' outputs. Functions without
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
from models.transport.solve import solve


class RouterConfig(BaseModel):
    """Options of the router; they travel in the artifact's manifest.

    Attributes:
        temperature: of the softmax at node sites, in units of the TWD.
        graph_temperature: of the softmax at the graph site, in units of the mean absolute
            difference.
        mixed_layers: how many of the last layers mix, besides the graph site; the layers before
            them use the own adapters. None: all, as published.
        top_k: only the k nearest experts count (the own expert is always nearest or equal); None
            counts all.
        candidates: where an artifact is served, a task's mixture looks at its own expert and so
            many that the manifest calls nearest (`models.screening`), and the others get the weight
            0. Meant for many experts and top_k: without it the others' weights go missing. None:
            looks at all.
        solver, epsilon, tolerance, max_iters: of the transport problem.
        debias: Sinkhorn divergence in place of the entropic cost; its self terms cost two more
            solutions.
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
        """Whether a layer (0 to num_layers - 1) mixes."""
        return self.mixed_layers is None or layer >= num_layers - self.mixed_layers


def node_distances(
    z: Tensor, gram: Tensor, experts: Tensor, support: Support, config: RouterConfig
) -> Tensor:
    """TWD between every expert's output and the own expert's, per graph and stream.

    Args:
        z: (N, T, K, r) projections of all experts in T streams.
        gram: (K, K, r, r).
        experts: (T,) own expert of each stream.
        support: of the batch.
        config: solver and its options.

    Returns:
        (G, T, K).
    """
    streams = torch.arange(len(experts), device=experts.device)
    own = z[:, streams, experts]
    # M_ik z_k: what z_i is multiplied with
    facing = torch.einsum("tirq,ntq->ntir", gram[:, experts].movedim(1, 0), own)
    square = torch.einsum("ntir,irq,ntiq->nti", z, torch.einsum("iirq->irq", gram), z).clamp(min=0)
    own_square = square[:, streams, experts].unsqueeze(-1)
    params = SinkhornParams(config.epsilon, config.tolerance, config.max_iters)
    cross = solve(
        _cost(z, facing, square, own_square, support), support, solver=config.solver, params=params
    )
    if not config.debias or config.solver == "exact":
        return cross.cost
    to_self = torch.einsum("iirq,ntiq->ntir", gram, z)
    selves = solve(
        _cost(z, to_self, square, square, support), support, params=params
    ).regularized_cost
    own_self = selves[:, streams, experts].unsqueeze(-1)
    return cross.regularized_cost - (selves + own_self) / 2


def _cost(
    left: Tensor, right: Tensor, left_square: Tensor, right_square: Tensor, support: Support
) -> Tensor:
    """(1 - cos) / 2 on the support, (E, T, K), from rank-space vectors (N, T, K, r) and squared
    norms (N, T, K or 1)."""
    rows, cols = support.rows, support.cols
    left_square, right_square = (
        left_square.index_select(0, rows),
        right_square.index_select(0, cols),
    )
    return cosine_cost(
        torch.linalg.vecdot(left.index_select(0, rows), right.index_select(0, cols)),
        left_square,
        right_square,
    )


def cosine_cost(inner: Tensor, left_square: Tensor, right_square: Tensor) -> Tensor:
    """(1 - cos) / 2 of pairs of outputs, in [0, 1], from their inner products and squared norms,
    all of one shape."""
    scale = (left_square * right_square).sqrt()
    tiny = torch.finfo(scale.dtype).tiny ** 0.5
    cosine = torch.where(scale > tiny, inner / scale.clamp(min=tiny), 0.0)
    # Two zero outputs are equal (relu often silences a whole adapter at a node): no distance, as in
    # models.twd.
    both_zero = (left_square == 0) & (right_square == 0)
    return torch.where(both_zero, 0.0, (1 - cosine).clamp(0, 2) / 2)


def graph_distances(outputs: Tensor, experts: Tensor) -> Tensor:
    """Mean absolute difference between every expert's output and the own expert's: (G, T, K, d),
    (T,) -> (G, T, K)."""
    own = outputs[:, torch.arange(len(experts), device=experts.device), experts].unsqueeze(2)
    return (outputs - own).abs().mean(-1)


def routing_weights(distances: Tensor, temperature: float, top_k: int | None = None) -> Tensor:
    """softmax(-distance / temperature) over the k nearest experts: (G, T, K) -> (G, T, K), each row
    sums to 1."""
    scores = -distances / temperature
    if top_k is not None and top_k < scores.shape[-1]:
        dropped = scores.topk(scores.shape[-1] - top_k, dim=-1, largest=False).indices
        scores = scores.scatter(-1, dropped, float("-inf"))
    return scores.softmax(-1)
