"""Entropic optimal transport on an edge list (Sinkhorn).

One problem per graph: move uniform mass 1/N_g from the nodes of H to the nodes of H' along a
support of E (row, column) entries, each with a cost.

    T = argmin <T, C> + epsilon * KL(T | a b^T)
        over  T >= 0,  T 1 = a,  T^T 1 = b,  T = 0 off the support,  with a = b = 1/N_g

All graphs of a batch, and all trailing dimensions *B of the cost (E, *B), are solved at once; no
N x N matrix is formed. `models.transport.exact` solves the same problem with epsilon = 0.

Source: G-Merging's topology-aware Wasserstein distance; Cuturi 2013. Ours: the edge list, the stop
per graph, the log domain and the gradient.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from models.ops.segment import segment_count, segment_logsumexp, segment_mean, segment_sum
from models.transport.problem import (
    SinkhornParams,
    SinkhornResult,
    Support,
    flatten_trailing,
    restore_trailing,
)
from models.transport.sweeps import log_domain_sweeps


def sinkhorn(
    cost: Tensor, support: Support, params: SinkhornParams | None = None
) -> SinkhornResult:
    """Solve entropic optimal transport in the log domain.

    Every graph and trailing index stops by itself and is then frozen, so a result never depends on
    the rest of the batch. f is updated first and g last: the columns of the plan sum to 1/N_g
    exactly, the rows as closely as the tolerance asks.

    No sweep is unrolled for the gradient. `regularized_cost` has gradient T with respect to C,
    which is exact at convergence (envelope theorem). `cost` has gradient T too, by choice: T is
    held constant. `regularized_cost` is evaluated as the dual, sum a f + sum b g with f and g
    relative to a b^T. At convergence that is the primal value; before, it is a lower bound with an
    error of second order, where the primal formula has one of first order.

    Args:
        cost: (E, *B) float32 or float64 on the entries of `support`.
        support: where mass may move.
        params: None for the defaults.

    Raises:
        InvalidInputError: cost of wrong shape or dtype, or not finite.
    """
    params = params or SinkhornParams()
    flat = flatten_trailing(cost, support)
    with torch.no_grad():
        nodes, graphs, width = support.num_nodes, support.num_graphs, flat.shape[1]
        phi, psi = flat.new_zeros(2, nodes, width)
        active, num_iters = flat.new_ones(graphs, width), flat.new_zeros(graphs, width)
        sweep = _sweep_on_cpu if flat.is_cpu else _sweep
        sweep(support, params, flat / -params.epsilon, phi, psi, active, num_iters)
        plan = (
            (phi.index_select(0, support.rows) + psi.index_select(0, support.cols))
            .sub_(flat, alpha=1 / params.epsilon)
            .exp_()
        )
        # sum a (phi - log a) + sum b (psi - log b) with a_i = b_i = 1 / N_g
        mean = segment_mean(phi + psi, support.graph_of_node, support.num_graphs)
        dual = params.epsilon * (mean + 2 * support.graph_sizes.to(flat.dtype).log()[:, None])
    value = segment_sum(plan * flat, support.graph_of_entry, support.num_graphs)
    regularized = value + (dual - value).detach()  # the value of the dual, the gradient T
    trailing = cost.shape[1:]
    return SinkhornResult(
        cost=restore_trailing(value, trailing),
        regularized_cost=restore_trailing(regularized, trailing),
        plan=restore_trailing(plan, trailing),
        potentials=(
            restore_trailing(phi * params.epsilon, trailing),
            restore_trailing(psi * params.epsilon, trailing),
        ),
        num_iters=restore_trailing(num_iters.long(), trailing),
        converged=restore_trailing(active == 0, trailing),
    )


def _sweep(
    support: Support,
    params: SinkhornParams,
    kernel: Tensor,
    phi: Tensor,
    psi: Tensor,
    active: Tensor,
    num_iters: Tensor,
) -> None:
    """Run up to `max_iters` sweeps in place.

    Once half of the graphs have converged the others continue as a batch of their own, so that a
    slow graph does not make the whole batch sweep on.

    Args:
        kernel: (E, B) -C / epsilon.
        phi, psi: (N, B) f / epsilon and g / epsilon.
        active, num_iters: (G, B) 1 where not converged, and sweeps so far.
    """
    rows = support.rows
    cols = support.cols
    nodes = support.num_nodes
    work = torch.empty_like(kernel)
    log_mass = -support.graph_sizes.to(kernel.dtype).log()[support.graph_of_node, None]
    for remaining in reversed(range(params.max_iters)):
        # lerp with weights of exactly 0 and 1 freezes converged graphs bit for bit, at a fifth of
        # the cost of torch.where; psi follows from phi
        moving = active.index_select(0, support.graph_of_node)
        update = log_mass - segment_logsumexp(
            torch.index_select(psi, 0, cols, out=work).add_(kernel), rows, nodes
        )
        change = segment_sum((update - phi).abs_(), support.graph_of_node, support.num_graphs)
        phi.lerp_(update, moving)
        torch.sub(
            log_mass,
            segment_logsumexp(torch.index_select(phi, 0, rows, out=work).add_(kernel), cols, nodes),
            out=psi,
        )
        num_iters += active
        active *= params.epsilon * change >= params.tolerance
        busy = active.any(1)
        if 2 * int(busy.sum()) <= support.num_graphs:
            if remaining and busy.any():
                subset, of_entry, of_node = support.restrict(busy)
                state = phi[of_node], psi[of_node], active[busy], num_iters[busy]
                _sweep(subset, replace(params, max_iters=remaining), kernel[of_entry], *state)
                phi[of_node], psi[of_node], active[busy], num_iters[busy] = state
            return


def _sweep_on_cpu(
    support: Support,
    params: SinkhornParams,
    kernel: Tensor,
    phi: Tensor,
    psi: Tensor,
    active: Tensor,
    num_iters: Tensor,
) -> None:
    """Run the sweeps of `_sweep` graph by graph, so that a graph stays in the cache until it
    converges.
    """
    nodes = support.graph_of_node.argsort(stable=True)
    sizes = segment_count(support.graph_of_node, support.num_graphs)
    begins = functional.pad(sizes.cumsum(0), (1, 0))
    starts, columns = support.pattern.row_starts, support.cols.contiguous()
    where = nodes.numpy(), begins.numpy(), starts.numpy(), columns.numpy()
    stop = params.epsilon, params.tolerance, params.max_iters
    log_domain_sweeps(
        *where,
        kernel.contiguous().numpy(),
        phi.numpy(),
        psi.numpy(),
        active.numpy(),
        num_iters.numpy(),
        *stop,
    )
