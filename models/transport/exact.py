"""Exact optimal transport on an edge list, by minimum-weight perfect matching (scipy)."""

import logging
from functools import cache

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor

from models.ops.segment import segment_max, segment_sum
from models.transport.problem import (
    SinkhornResult,
    Solver,
    Support,
    flatten_trailing,
    restore_trailing,
)

log = logging.getLogger(__name__)
EXACT_ON_CPU = (
    "exact transport is solved on the CPU (scipy): costs leave the GPU and plans come back; solver"
    " 'sinkhorn' stays on the GPU"
)
MAX_BLOCK_ROWS = 4096
"""Most rows, over several trailing indices, that scipy gets in one call."""


def exact(cost: Tensor, support: Support) -> SinkhornResult:
    """Solve optimal transport exactly, as a minimum-weight perfect matching, on the CPU in float64.

    With uniform marginals the extreme points of the feasible plans are the perfect matchings of the
    support, divided by N_g (Birkhoff). The self-loops are one, so an optimum always exists. The
    graphs of a batch are the blocks of one sparse matrix for scipy (60 times faster than one by one
    for 512 molecules), with as many trailing indices as fit `MAX_BLOCK_ROWS`; a Python loop runs
    over the rest.

    A cost on a GPU is copied to the CPU and the plan back; the first such call of a process logs a
    warning. Where several matchings are optimal the plan is one of them. `cost` and
    `regularized_cost` have gradient T, exact where the optimum is unique.

    Args:
        cost: (E, *B) float32 or float64 on the entries of `support`.
        support: where mass may move.

    Raises:
        InvalidInputError: cost of wrong shape or dtype, or not finite.
    """
    flat = flatten_trailing(cost, support)
    if cost.is_cuda:
        warn_exact_on_cpu()
    matched = _match(flat.detach(), support).index_select(0, support.rows) == support.cols[:, None]
    plan = matched / support.graph_sizes.to(flat.dtype)[support.graph_of_entry, None]
    value = segment_sum(plan * flat, support.graph_of_entry, support.num_graphs)
    trailing = cost.shape[1:]
    return SinkhornResult(
        cost=restore_trailing(value, trailing),
        regularized_cost=restore_trailing(value, trailing),
        plan=restore_trailing(plan, trailing),
        potentials=None,
        num_iters=torch.zeros(
            (support.num_graphs, *trailing), dtype=torch.int64, device=cost.device
        ),
        converged=torch.ones((support.num_graphs, *trailing), dtype=torch.bool, device=cost.device),
    )


@cache
def warn_exact_on_cpu() -> None:
    """Log `EXACT_ON_CPU`, once per process."""
    log.warning(EXACT_ON_CPU)


def solver_device(solver: Solver, device: torch.device) -> str:
    """Return the device type a solver runs on for costs on `device`; the exact solver runs on the
    CPU.
    """
    return "cpu" if solver == "exact" else device.type


def _match(cost: Tensor, support: Support) -> Tensor:
    """Find the column that every row is matched with: cost (E, B) -> (N, B)."""
    nodes = support.num_nodes
    if nodes * cost.shape[1] == 0:
        return support.rows.new_zeros(nodes, cost.shape[1])
    # scipy reads a weight of 0 as no edge. The costs of every graph are shifted and scaled to
    # [1, 2], which keeps the optimum and makes it independent of other graphs and of the unit.
    graph, groups = support.graph_of_entry, support.num_graphs
    low, high = -segment_max(-cost, graph, groups), segment_max(cost, graph, groups)
    spread = torch.where(high > low, high - low, 1.0)
    weights = 1 + (cost - low.index_select(0, graph)) / spread.index_select(0, graph)
    # One sparse matrix with a block per graph and trailing index, of bounded size: with many equal
    # costs the time grows with the square of the size.
    chunks = weights.split(max(1, MAX_BLOCK_ROWS // nodes), dim=1)
    return torch.cat([_match_blocks(chunk, support) for chunk in chunks], 1).to(cost.device)


def _match_blocks(weights: Tensor, support: Support) -> Tensor:
    """Match with one call of scipy: weights (E, B) above 0 -> (N, B)."""
    nodes, (entries, width) = support.num_nodes, weights.shape
    offsets = np.arange(width)[:, None]
    cols = (support.cols.numpy(force=True) + offsets * nodes).ravel()
    starts = np.searchsorted(support.rows.numpy(force=True), np.arange(nodes)) + offsets * entries
    blocks = csr_matrix(
        (weights.T.numpy(force=True).ravel(), cols, np.append(starts, entries * width)),
        shape=(nodes * width, nodes * width),
    )
    matched = min_weight_full_bipartite_matching(blocks)[1].reshape(width, nodes).T % nodes
    return torch.from_numpy(matched.astype(np.int64))
