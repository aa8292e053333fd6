"""Optimal transport on an edge list: entropic (Sinkhorn) and, beside it, exact.

One problem per graph: move uniform mass 1/N_g from the nodes of H to the nodes of H' along a support of E (row, column) entries, each with a cost.
All graphs of a batch, and all trailing dimensions `*B` of the cost (E, *B), are solved at once; no N x N matrix is ever formed.

    T = argmin <T, C>  over  T >= 0,  T 1 = 1/N_g,  T^T 1 = 1/N_g,  T = 0 off the support                       (exact)
    T = argmin <T, C> + epsilon * KL(T | a b^T),  a = b = 1/N_g  under the same constraints                     (Sinkhorn)

Source: G-Merging's topology-aware Wasserstein distance. Ours: the edge list, the stop per graph, the log domain, the gradient and the exact solver.
"""

import logging
import math
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Literal, get_args

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor
from torch.nn import functional

from models.errors import InvalidInputError
from models.lanes import sweep_each
from models.segment import segment_count, segment_logsumexp, segment_max, segment_mean, segment_sum
from models.sparse import Pattern

log = logging.getLogger(__name__)

Solver = Literal["sinkhorn", "exact"]
EXACT_ON_CPU = "exact transport is solved on the CPU (scipy): costs leave the GPU and plans come back; solver 'sinkhorn' stays on the GPU"
MAX_BLOCK_ROWS = 4096
"""Rows, over several trailing indices, that the exact solver gives to scipy in one call."""


@dataclass(frozen=True, eq=False)
class Support:
    """Where mass may move: along the bonds of every graph, and every node to itself. Build it with `from_graph`, once per batch.

    Attributes:
        rows: (E,) node of H of each entry; entries are sorted by (row, column) and none repeats.
        cols: (E,) node of H' of each entry.
        graph_of_node: (N,) graph of each node. H and H' share their nodes.
        num_graphs: G.
    """

    rows: Tensor
    cols: Tensor
    graph_of_node: Tensor
    num_graphs: int

    @classmethod
    def from_graph(cls, edge_index: Tensor, batch: Tensor, num_graphs: int, order: int | None = 1) -> "Support":
        """Support of a batch of graphs: `edge_index` (2, E') int64 as given (never symmetrised), self loops added, repeated edges clipped to one.

        Args:
            order: the most edges that mass moves along. 1 is the published support; 0 leaves only the loops, None allows any two nodes of a graph.

        Raises:
            InvalidInputError: wrong shape or dtype, an index out of range, an edge between two graphs, or a negative order.
        """
        _check_graph(edge_index, batch, num_graphs)
        if order is not None and order < 0:
            raise InvalidInputError(f"got order {order}, expected at least 0, or None for any two nodes of a graph")
        num_nodes = len(batch)
        loops = torch.arange(num_nodes, device=batch.device)
        if order is None:
            pairs = (batch[:, None] == batch).nonzero().T
        else:
            one_step = torch.cat([loops.expand(2, -1), edge_index], dim=1) if order else loops.expand(2, -1)
            pairs = _distinct(one_step, num_nodes)
            for _ in range(order - 1):
                pairs = _distinct(torch.cat([pairs, _joined(pairs, edge_index, num_nodes)], dim=1), num_nodes)
        return cls(pairs[0], pairs[1], batch, num_graphs)

    def restrict(self, keep: Tensor) -> tuple["Support", Tensor, Tensor]:
        """The support of the graphs in `keep` (G,) bool alone, and which entries (E,) and nodes (N,) stay, both bool; their order does not change."""
        nodes, entries = keep[self.graph_of_node], keep[self.graph_of_entry]
        node, graph = nodes.cumsum(0) - 1, keep.cumsum(0) - 1  # new index of each node and graph that stays
        part = Support(node[self.rows[entries]], node[self.cols[entries]], graph[self.graph_of_node[nodes]], int(keep.sum()))
        return part, entries, nodes

    @property
    def num_nodes(self) -> int:
        """N, over all graphs."""
        return len(self.graph_of_node)

    @cached_property
    def pattern(self) -> Pattern:
        """The support as positions of an N x N matrix."""
        return Pattern(self.rows, self.cols, self.num_nodes)

    @cached_property
    def graph_of_entry(self) -> Tensor:
        """(E,) graph of each entry."""
        return self.graph_of_node[self.rows]

    @cached_property
    def graph_sizes(self) -> Tensor:
        """(G,) int64 number of nodes of each graph, at least 1 so that a graph without nodes divides nothing by 0."""
        return segment_count(self.graph_of_node, self.num_graphs).clamp(min=1)


@dataclass(frozen=True)
class SinkhornParams:
    """When Sinkhorn stops and how sharp it is; the defaults are the paper's.

    Attributes:
        epsilon: strength of the entropy, in units of cost.
        tolerance: a graph is done when sum over its nodes of |f - f_previous| < tolerance, f in units of cost. As f moves by epsilon times the log of
            how far a row's sum is off, the rows are met to about tolerance / epsilon: lower both together.
        max_iters: the most sweeps (one update of f and one of g) any graph gets.
    """

    epsilon: float = 0.1
    tolerance: float = 0.1
    max_iters: int = 100

    def __post_init__(self) -> None:
        for name in ("epsilon", "tolerance"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InvalidInputError(f"got {name} {value}, expected a finite number above 0")
        if self.max_iters < 1:
            raise InvalidInputError(f"got max_iters {self.max_iters}, expected at least 1")


@dataclass(frozen=True, eq=False)
class SinkhornResult:
    """Solution of G transport problems for each index of the trailing dimensions *B.

    Attributes:
        cost: (G, *B) transport cost <T, C>, in units of C.
        regularized_cost: (G, *B) OT_eps = <T, C> + epsilon * sum T (log T - log a_i b_j); equals `cost` for the exact solver.
        plan: (E, *B) T on the entries of the support, no gradient.
        potentials: f and g, (N, *B) each, in units of C, with T_ij = exp((f_i + g_j - C_ij) / epsilon); None for the exact solver.
        num_iters: (G, *B) int64 sweeps made; 0 for the exact solver.
        converged: (G, *B) bool, whether the tolerance was met within max_iters.
    """

    cost: Tensor
    regularized_cost: Tensor
    plan: Tensor
    potentials: tuple[Tensor, Tensor] | None
    num_iters: Tensor
    converged: Tensor


def solve(cost: Tensor, support: Support, *, solver: Solver = "sinkhorn", params: SinkhornParams | None = None) -> SinkhornResult:
    """`sinkhorn` or `exact` by name: cost (E, *B) on `support`. `params` is for Sinkhorn and unused by the exact solver.

    Raises:
        InvalidInputError: unknown solver, or as the solver raises.
    """
    if solver not in get_args(Solver):
        raise InvalidInputError(f"got solver {solver!r}, expected one of {get_args(Solver)}")
    return exact(cost, support) if solver == "exact" else sinkhorn(cost, support, params)


def sinkhorn(cost: Tensor, support: Support, params: SinkhornParams | None = None) -> SinkhornResult:
    """Entropic optimal transport for cost (E, *B), in the log domain.

    Each graph and trailing index stops by itself and is then frozen, so a value never depends on what else is in the batch. f is updated first and
    g last: the columns of the plan sum to 1/N_g exactly, its rows only as closely as the tolerance asks.

    Gradient: nothing is unrolled. `regularized_cost` has gradient T with respect to C, which is exact at convergence (envelope theorem); `cost` has
    gradient T too, by choice: T is held constant.
    `regularized_cost` is evaluated as the dual, sum a f + sum b g with f and g relative to a b^T. At convergence that is the primal value. Before, it
    is a lower bound with an error of second order, while the primal formula, at a plan whose rows are off, has one of first order.

    Raises:
        InvalidInputError: cost of wrong shape or dtype, or not finite.
    """
    params = params or SinkhornParams()
    flat = _flatten(cost, support)
    with torch.no_grad():
        nodes, graphs, width = support.num_nodes, support.num_graphs, flat.shape[1]
        phi, psi = flat.new_zeros(2, nodes, width)
        active, num_iters = flat.new_ones(graphs, width), flat.new_zeros(graphs, width)
        sweep = _sweep_on_cpu if flat.is_cpu else _sweep
        sweep(support, params, flat / -params.epsilon, phi, psi, active, num_iters)
        plan = (phi.index_select(0, support.rows) + psi.index_select(0, support.cols)).sub_(flat, alpha=1 / params.epsilon).exp_()
        # sum a (phi - log a) + sum b (psi - log b) with a_i = b_i = 1 / N_g
        mean = segment_mean(phi + psi, support.graph_of_node, support.num_graphs)
        dual = params.epsilon * (mean + 2 * support.graph_sizes.to(flat.dtype).log()[:, None])
    value = segment_sum(plan * flat, support.graph_of_entry, support.num_graphs)
    regularized = value + (dual - value).detach()  # the value of the dual, the gradient T
    trailing = cost.shape[1:]
    return SinkhornResult(
        cost=_restore(value, trailing),
        regularized_cost=_restore(regularized, trailing),
        plan=_restore(plan, trailing),
        potentials=(_restore(phi * params.epsilon, trailing), _restore(psi * params.epsilon, trailing)),
        num_iters=_restore(num_iters.long(), trailing),
        converged=_restore(active == 0, trailing),
    )


def exact(cost: Tensor, support: Support) -> SinkhornResult:
    """Exact optimal transport for cost (E, *B), on the CPU and in float64, by minimum-weight perfect matching.

    Uniform marginals on an edge list make the plan's extreme points the perfect matchings of the support, divided by N_g (Birkhoff). The self loops
    are one, so an optimum always exists. The graphs of the batch go to scipy as the blocks of one sparse matrix (for 512 molecules 60 times faster
    than one by one), with as many trailing indices as fit MAX_BLOCK_ROWS; a Python loop runs over the rest.

    A cost on a GPU is copied to the CPU and the plan back; the first such call of a process logs a warning.

    Where several matchings are optimal, the plan is one of them. Gradient of `cost` and `regularized_cost`: T, exact where the optimum is unique.

    Raises:
        InvalidInputError: cost of wrong shape or dtype, or not finite.
    """
    flat = _flatten(cost, support)
    if cost.is_cuda:
        warn_of_cpu()
    matched = _match(flat.detach(), support).index_select(0, support.rows) == support.cols[:, None]
    plan = matched / support.graph_sizes.to(flat.dtype)[support.graph_of_entry, None]
    value = segment_sum(plan * flat, support.graph_of_entry, support.num_graphs)
    trailing = cost.shape[1:]
    return SinkhornResult(
        cost=_restore(value, trailing),
        regularized_cost=_restore(value, trailing),
        plan=_restore(plan, trailing),
        potentials=None,
        num_iters=torch.zeros((support.num_graphs, *trailing), dtype=torch.int64, device=cost.device),
        converged=torch.ones((support.num_graphs, *trailing), dtype=torch.bool, device=cost.device),
    )


@cache
def warn_of_cpu() -> None:
    """Log `EXACT_ON_CPU`, once in a process."""
    log.warning(EXACT_ON_CPU)


def solver_device(solver: Solver, device: torch.device) -> str:
    """Where a solver runs for costs on `device`: the exact one is scipy's, on the CPU."""
    return "cpu" if solver == "exact" else device.type


def _sweep(support: Support, params: SinkhornParams, kernel: Tensor, phi: Tensor, psi: Tensor, active: Tensor, num_iters: Tensor) -> None:
    """Up to `max_iters` sweeps, in place: kernel = -C / epsilon (E, B); phi = f / epsilon and psi = g / epsilon (N, B); active, num_iters (G, B).

    Once half of the graphs are done the others go on by themselves, so that a slow graph does not cost the whole batch its sweeps.
    """
    rows, cols, nodes, work = support.rows, support.cols, support.num_nodes, torch.empty_like(kernel)
    log_mass = -support.graph_sizes.to(kernel.dtype).log()[support.graph_of_node, None]
    for left in reversed(range(params.max_iters)):
        # lerp with weights of exactly 0 and 1 freezes what is done, bit for bit, at a fifth of the cost of torch.where; psi follows from phi
        moving = active.index_select(0, support.graph_of_node)
        update = log_mass - segment_logsumexp(torch.index_select(psi, 0, cols, out=work).add_(kernel), rows, nodes)
        change = segment_sum((update - phi).abs_(), support.graph_of_node, support.num_graphs)
        phi.lerp_(update, moving)
        torch.sub(log_mass, segment_logsumexp(torch.index_select(phi, 0, rows, out=work).add_(kernel), cols, nodes), out=psi)
        num_iters += active
        active *= params.epsilon * change >= params.tolerance
        busy = active.any(1)
        if 2 * int(busy.sum()) <= support.num_graphs:
            if left and busy.any():
                part, of_entry, of_node = support.restrict(busy)
                state = phi[of_node], psi[of_node], active[busy], num_iters[busy]
                _sweep(part, replace(params, max_iters=left), kernel[of_entry], *state)
                phi[of_node], psi[of_node], active[busy], num_iters[busy] = state
            return


def _sweep_on_cpu(support: Support, params: SinkhornParams, kernel: Tensor, phi: Tensor, psi: Tensor, active: Tensor, num_iters: Tensor) -> None:
    """As `_sweep`, graph by graph, so that one stays in the cache until it is done."""
    nodes, sizes = support.graph_of_node.argsort(stable=True), segment_count(support.graph_of_node, support.num_graphs)
    begins = functional.pad(sizes.cumsum(0), (1, 0))
    starts, columns = support.pattern.row_starts, support.cols.contiguous()
    where = nodes.numpy(), begins.numpy(), starts.numpy(), columns.numpy()
    stop = params.epsilon, params.tolerance, params.max_iters
    sweep_each(*where, kernel.contiguous().numpy(), phi.numpy(), psi.numpy(), active.numpy(), num_iters.numpy(), *stop)


def _match(cost: Tensor, support: Support) -> Tensor:
    """(N, B) the column that each row is matched with, for cost (E, B)."""
    nodes = support.num_nodes
    if nodes * cost.shape[1] == 0:
        return support.rows.new_zeros(nodes, cost.shape[1])
    # scipy reads a weight of 0 as no edge. Each graph's costs are moved to [1, 2]: its optimum stays, and depends on no other graph and no unit.
    graph, groups = support.graph_of_entry, support.num_graphs
    low, high = -segment_max(-cost, graph, groups), segment_max(cost, graph, groups)
    spread = torch.where(high > low, high - low, 1.0)
    weights = 1 + (cost - low.index_select(0, graph)) / spread.index_select(0, graph)
    # One sparse matrix with a block per graph and trailing index, but of a bounded size: with many equal costs the time grows as its square.
    chunks = weights.split(max(1, MAX_BLOCK_ROWS // nodes), dim=1)
    return torch.cat([_match_blocks(chunk, support) for chunk in chunks], 1).to(cost.device)


def _match_blocks(weights: Tensor, support: Support) -> Tensor:
    """`_match` by one call of scipy: weights (E, B) above 0 -> (N, B)."""
    nodes, (entries, width) = support.num_nodes, weights.shape
    offsets = np.arange(width)[:, None]
    cols = (support.cols.numpy(force=True) + offsets * nodes).ravel()
    starts = np.searchsorted(support.rows.numpy(force=True), np.arange(nodes)) + offsets * entries
    blocks = csr_matrix((weights.T.numpy(force=True).ravel(), cols, np.append(starts, entries * width)), shape=(nodes * width, nodes * width))
    matched = min_weight_full_bipartite_matching(blocks)[1].reshape(width, nodes).T % nodes
    return torch.from_numpy(matched.astype(np.int64))


def _joined(pairs: Tensor, edge_index: Tensor, num_nodes: int) -> Tensor:
    """Every (i, k) with (i, j) among `pairs` and (j, k) an edge: (2, P) and (2, E) -> (2, P')."""
    by_source = edge_index[:, edge_index[0].argsort()]
    count = segment_count(edge_index[0], num_nodes)
    fan = count[pairs[1]]
    within = torch.arange(int(fan.sum()), device=pairs.device) - (fan.cumsum(0) - fan).repeat_interleave(fan)
    first = (count.cumsum(0) - count)[pairs[1]].repeat_interleave(fan)
    return torch.stack([pairs[0].repeat_interleave(fan), by_source[1, first + within]])


def _distinct(pairs: Tensor, num_nodes: int) -> Tensor:
    """Each pair once, sorted by row and then column: (2, P) -> (2, P')."""
    base = max(num_nodes, 1)
    keys = torch.unique(pairs[0] * base + pairs[1])
    return torch.stack([keys // base, keys % base])


def _check_graph(edge_index: Tensor, batch: Tensor, num_graphs: int) -> None:
    if edge_index.dim() != 2 or edge_index.shape[0] != 2 or edge_index.dtype != torch.int64:
        raise InvalidInputError(f"got edge_index of shape {tuple(edge_index.shape)}, {edge_index.dtype}, expected (2, E), torch.int64")
    if batch.dim() != 1 or batch.dtype != torch.int64:
        raise InvalidInputError(f"got batch of shape {tuple(batch.shape)}, {batch.dtype}, expected (N,), torch.int64")
    for name, values, size in (("batch", batch, num_graphs), ("edge_index", edge_index, len(batch))):
        if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < size:
            raise InvalidInputError(f"got {name} from {int(values.min())} to {int(values.max())}, expected 0 to {size - 1}")
    crossing = int((batch[edge_index[0]] != batch[edge_index[1]]).sum())
    if crossing:
        raise InvalidInputError(f"got {crossing} edges between two graphs, expected every edge inside one graph")


def _flatten(cost: Tensor, support: Support) -> Tensor:
    """Check cost (E, *B) and make it (E, prod B)."""
    entries = len(support.rows)
    if cost.dim() == 0 or cost.shape[0] != entries:
        raise InvalidInputError(f"got cost of shape {tuple(cost.shape)}, expected ({entries}, ...), one row per entry of the support")
    if cost.dtype not in (torch.float32, torch.float64):
        raise InvalidInputError(f"got cost of {cost.dtype}, expected torch.float32 or torch.float64")
    if not cost.isfinite().all():
        raise InvalidInputError(f"got cost with {int((~cost.isfinite()).sum())} non-finite values, expected finite numbers")
    return cost.reshape(entries, math.prod(cost.shape[1:]))


def _restore(flat: Tensor, trailing: torch.Size) -> Tensor:
    return flat.view(flat.shape[0], *trailing)
