"""Slow and obvious transport: one graph at a time, dense, with a mask (n, n) of where mass may
move."""

import math

import numpy as np
import ot
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.special import logsumexp
from torch import Tensor

from tests.strategies import GraphCase

Array = NDArray[np.float64]


def dense_mask(case: GraphCase, graph: int) -> NDArray[np.bool_]:
    """(n, n) where mass may move in one graph, nodes in the order of `case.nodes(graph)`."""
    nodes = case.nodes(graph).tolist()
    mask = np.eye(len(nodes), dtype=bool)
    for source, target in case.edge_index.T.tolist():
        if source in nodes:
            mask[nodes.index(source), nodes.index(target)] = True
    return mask


def dense_cost(h: Tensor, h_ref: Tensor) -> Array:
    """(n, n) of (1 - cos) / 2: cosine 0 with one zero vector, 1 between two."""
    return np.array([[(1 - _cosine(a, b)) / 2 for b in h_ref.tolist()] for a in h.tolist()])


def _cosine(a: list[float], b: list[float]) -> float:
    norms = math.hypot(*a), math.hypot(*b)
    if 0 in norms:
        return float(norms == (0, 0))
    return sum(x * y for x, y in zip(a, b, strict=True)) / norms[0] / norms[1]


def published_sinkhorn(
    cost: Array, mask: NDArray[np.bool_], epsilon: float, tolerance: float, max_iters: int
) -> tuple[float, Array, int]:
    """Cost <T, C>, plan and sweeps made by the published recipe, with -inf off the support: u, then
    v, until sum |u - u_previous| < tolerance."""
    n = len(cost)
    kernel = np.where(mask, -cost, -np.inf)
    u, v, sweeps, change = np.zeros(n), np.zeros(n), 0, math.inf
    while sweeps < max_iters and change >= tolerance:
        before = u
        u = epsilon * (-math.log(n) - logsumexp((kernel + u[:, None] + v) / epsilon, axis=1)) + u
        v = epsilon * (-math.log(n) - logsumexp((kernel + u[:, None] + v) / epsilon, axis=0)) + v
        sweeps, change = sweeps + 1, np.abs(u - before).sum()
    plan = np.exp((kernel + u[:, None] + v) / epsilon)
    return float((plan * cost).sum()), plan, sweeps


def primal(cost: Array, plan: Array, epsilon: float) -> float:
    """<T, C> + epsilon * sum T (log T - log a b), with 0 log 0 = 0."""
    positive = plan[plan > 0]
    return float(
        (plan * cost).sum()
        + epsilon * (positive * (np.log(positive) + 2 * math.log(len(cost)))).sum()
    )


def linear_program(cost: Array, mask: NDArray[np.bool_]) -> float:
    """The optimum as a linear program: one variable per entry of the mask, one equation per row and
    per column."""
    n, (rows, cols) = len(cost), np.nonzero(mask)
    equations = np.zeros((2 * n, len(rows)))
    equations[rows, np.arange(len(rows))] = 1
    equations[n + cols, np.arange(len(rows))] = 1
    return float(
        linprog(cost[mask], A_eq=equations, b_eq=np.full(2 * n, 1 / n), bounds=(0, None)).fun
    )


def pot_emd(cost: Array, mask: NDArray[np.bool_]) -> float:
    """The optimum by POT's network simplex, with a price off the support that no plan would pay."""
    uniform = np.full(len(cost), 1 / len(cost))
    plan = ot.emd(uniform, uniform, np.where(mask, cost, 1e3 * (1 + np.abs(cost).max())))
    return float((plan * cost).sum())
