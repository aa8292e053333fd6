"""The topology-aware Wasserstein distance (TWD) between two embeddings of the same graph.

    twd(H, H') = min_T sum_ij T_ij c(h_i, h'_j),   c(a, b) = (1 - cos(a, b)) / 2,   T on the edges
    and self loops of the graph, uniform marginals

Source: G-Merging. Where the paper and its code disagree we follow the paper, see `twd`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.errors import InvalidInputError
from models.ops.sparse import edge_dots
from models.transport.problem import SinkhornParams, Solver, Support
from models.transport.solve import solve_transport


@dataclass(frozen=True, eq=False)
class TWDResult:
    """TWD of every graph of a batch.

    Attributes:
        cost: (G,) the distance, in [0, 1]; debiased it may be slightly below 0.
        num_iters: (G,) int64 Sinkhorn sweeps, with debias the most of its three terms; 0 for the
            exact solver.
        converged: (G,) bool, with debias of all three terms.
        plan: (E,) transport plan from H to H' on the entries of the support, no gradient.
    """

    cost: Tensor
    num_iters: Tensor
    converged: Tensor
    plan: Tensor


def cosine_cost(h: Tensor, h_ref: Tensor, support: Support) -> Tensor:
    """Compute the cosine cost c(h_i, h'_j) = (1 - cos) / 2 on the entries of the support.

    A zero vector has cosine 0 with any other vector, so cost 1/2, and cost 0 with another zero
    vector; its gradient is zero. A vector counts as zero if its squared norm is below the smallest
    normal number (norm 1e-19 in float32).

    Args:
        h, h_ref: (N, d) node embeddings, float32 or float64.
        support: where mass may move.

    Returns:
        (E,) in [0, 1].

    Raises:
        InvalidInputError: shapes or dtypes differ or do not fit the support, or values not finite.

    Source: G-Merging, the paper (its code divides by the largest 1 - cos of the graph). Ours: zero
    vectors.
    """
    _check_embeddings(h, h_ref, support.num_nodes)
    (unit, nonzero), (unit_ref, nonzero_ref) = _normalize(h), _normalize(h_ref)
    cosine = edge_dots(unit, unit_ref, support.pattern)
    both_zero = ~(nonzero[support.rows] | nonzero_ref[support.cols])
    return torch.where(both_zero, 0.0, (1 - cosine).clamp(0, 2) / 2)


def twd_on_support(
    h: Tensor,
    h_ref: Tensor,
    support: Support,
    *,
    solver: Solver = "sinkhorn",
    epsilon: float = 0.1,
    tolerance: float = 0.1,
    max_iters: int = 100,
    debias: bool = False,
) -> TWDResult:
    """Compute `twd` on a given support, which a caller with several layers builds once per batch.

    Arguments, result and errors are those of `twd`.
    """
    params = SinkhornParams(epsilon, tolerance, max_iters)
    cost = cosine_cost(h, h_ref, support)
    if not debias or solver == "exact":  # exact self terms are 0: T = I/N costs nothing
        result = solve_transport(cost, support, solver=solver, params=params)
        return TWDResult(result.cost, result.num_iters, result.converged, result.plan)
    costs = torch.stack([cost, cosine_cost(h, h, support), cosine_cost(h_ref, h_ref, support)], -1)
    result = solve_transport(costs, support, solver=solver, params=params)
    cross, self_cost, self_cost_ref = result.regularized_cost.unbind(-1)
    return TWDResult(
        cross - (self_cost + self_cost_ref) / 2,
        result.num_iters.amax(-1),
        result.converged.all(-1),
        result.plan[:, 0],
    )


def twd(
    h: Tensor,
    h_ref: Tensor,
    edge_index: Tensor,
    batch: Tensor,
    num_graphs: int,
    *,
    solver: Solver = "sinkhorn",
    epsilon: float = 0.1,
    tolerance: float = 0.1,
    max_iters: int = 100,
    debias: bool = False,
) -> TWDResult:
    """Compute the topology-aware Wasserstein distance of every graph in a batch.

    Args:
        h: (N, d) node embeddings, float32 or float64.
        h_ref: (N, d) embeddings of the same nodes by another model, same dtype.
        edge_index: (2, E') int64, the edges along which mass of `h` (row 0) may move to `h_ref`
            (row 1); self-loops are added, repeated edges count once. If it is not symmetric,
            neither is the distance.
        batch: (N,) int64, graph of each node.
        num_graphs: number of graphs G. A graph without nodes costs 0.
        solver: "sinkhorn" (entropic, as published) or "exact" (a true optimum, so twd(x, x) = 0).
        epsilon, tolerance, max_iters: see `SinkhornParams`; unused by the exact solver.
        debias: with Sinkhorn twd(x, x) > 0, as entropy sends mass to neighbours. True gives the
            Sinkhorn divergence OT_eps(h, h_ref) - (OT_eps(h, h) + OT_eps(h_ref, h_ref)) / 2, which
            is 0 for equal inputs, with gradients through all three terms. On a sparse support it is
            not guaranteed to be positive. No effect on the exact solver.

    Returns:
        TWDResult. `cost` has gradients with respect to both embeddings with the plan held constant
        (the authors unroll the sweeps). By the envelope theorem that is exact at convergence for
        `debias` and for the exact solver; for the plain <T, C> of Sinkhorn it is a choice.

    Raises:
        InvalidInputError: shapes, dtypes, indices, values, solver or parameters are not as
            described.

    Source: G-Merging; epsilon, tolerance and max_iters are the paper's. Ours: every graph stops by
    itself (the authors' code stops the whole batch at once), the edge list, `exact` and `debias`.
    """
    support = Support.from_graph(edge_index, batch, num_graphs)
    return twd_on_support(
        h,
        h_ref,
        support,
        solver=solver,
        epsilon=epsilon,
        tolerance=tolerance,
        max_iters=max_iters,
        debias=debias,
    )


def _normalize(h: Tensor) -> tuple[Tensor, Tensor]:
    """Scale the rows of h (N, d) to length 1.

    Returns:
        The rows, zero vectors as 0 with gradient 0; and (N,) which rows are nonzero.
    """
    norm = torch.linalg.vector_norm(h, dim=1, keepdim=True)
    if not norm.isfinite().all():
        raise InvalidInputError(
            f"got embeddings with {int((~norm.isfinite()).sum())} rows of non-finite norm, expected"
            " finite numbers"
        )
    tiny = torch.finfo(h.dtype).tiny ** 0.5
    nonzero = norm > tiny
    # A product with 0 or 1 / norm: torch.where with a broadcast condition is 30 times slower. The
    # clamp keeps 1 / 0 away.
    return h * (nonzero / norm.clamp(min=tiny)), nonzero.squeeze(1)


def _check_embeddings(h: Tensor, h_ref: Tensor, num_nodes: int) -> None:
    for name, values in (("h", h), ("h_ref", h_ref)):
        if values.dim() != 2 or values.shape[0] != num_nodes:
            raise InvalidInputError(
                f"got {name} of shape {tuple(values.shape)}, expected ({num_nodes}, d), one row per"
                " node"
            )
        if values.dtype not in (torch.float32, torch.float64):
            raise InvalidInputError(
                f"got {name} of {values.dtype}, expected torch.float32 or torch.float64"
            )
    if (h.shape[1], h.dtype) != (h_ref.shape[1], h_ref.dtype):
        raise InvalidInputError(
            f"got h_ref of width {h_ref.shape[1]}, {h_ref.dtype}, expected that of h, {h.shape[1]},"
            f" {h.dtype}"
        )
