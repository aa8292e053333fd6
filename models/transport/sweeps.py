"""Sinkhorn's sweeps as a compiled kernel, for `models.transport.sinkhorn` on the CPU."""

import math

import numpy as np

from models.ops.jit import Floats, Integers, kernel


@kernel
def log_domain_sweeps(
    nodes: Integers,
    begins: Integers,
    starts: Integers,
    columns: Integers,
    scores: Floats,
    phi: Floats,
    psi: Floats,
    active: Floats,
    num_iters: Floats,
    epsilon: float,
    tolerance: float,
    max_iters: int,
) -> None:
    """Run Sinkhorn's sweeps in the log domain, in place, graph by graph and problem by problem
    until each converges.

    Args:
        nodes: (N,) nodes sorted by graph.
        begins: (G + 1,) where the nodes of each graph start in `nodes`.
        starts, columns: (N + 1,) and (E,) entries of each row; every row and column has at least
            one.
        scores: (E, B) -C / epsilon.
        phi, psi: (N, B) f / epsilon and g / epsilon.
        active, num_iters: (G, B) set to 0 at convergence, and increased by the number of sweeps.
        epsilon, tolerance, max_iters: see `models.transport.problem.SinkhornParams`.
    """
    largest, total = np.empty_like(phi[:, 0]), np.empty_like(phi[:, 0])
    for graph in range(len(begins) - 1):
        here = nodes[begins[graph] : begins[graph + 1]]
        log_mass = -math.log(max(len(here), 1))
        for problem in range(scores.shape[1]):
            for _ in range(max_iters):
                change = 0.0
                for node in here:
                    first = starts[node]
                    high = scores[first, problem] + psi[columns[first], problem]
                    for entry in range(first + 1, starts[node + 1]):
                        high = max(high, scores[entry, problem] + psi[columns[entry], problem])
                    mass = 0 * high
                    for entry in range(first, starts[node + 1]):
                        mass += math.exp(
                            scores[entry, problem] + psi[columns[entry], problem] - high
                        )
                    update = log_mass - (math.log(mass) + high)
                    change += abs(update - phi[node, problem])
                    phi[node, problem] = update
                    largest[node] = -1e30
                    total[node] = 0
                for node in here:
                    for entry in range(starts[node], starts[node + 1]):
                        column = columns[entry]
                        largest[column] = max(
                            largest[column], scores[entry, problem] + phi[node, problem]
                        )
                for node in here:
                    for entry in range(starts[node], starts[node + 1]):
                        column = columns[entry]
                        total[column] += math.exp(
                            scores[entry, problem] + phi[node, problem] - largest[column]
                        )
                for node in here:
                    psi[node, problem] = log_mass - (math.log(total[node]) + largest[node])
                num_iters[graph, problem] += 1
                if epsilon * change < tolerance:
                    active[graph, problem] = 0
                    break
