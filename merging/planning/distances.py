"""Distances between fine-tuned models: Gromov-Wasserstein between their feature spaces, CKA, and
the cosine of their task vectors.

Gromov-Wasserstein compares two tables of distances between molecules, so neither the molecules nor
the widths of the two models need be the same (Memoli 2011, Gromov-Wasserstein distances and the
metric approach to object matching). Fang et al. 2025 plan merges with it (Efficient multi-task
inferencing: model merging with Gromov-Wasserstein feature alignment, arXiv:2503.09774).
"""

import itertools
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merging.mergers.task_vector import TaskVector
from models.data.batch import GraphBatch, mean_readout
from models.errors import InvalidInputError
from models.networks.hu2020 import Backbone

Variant = Literal["exact", "sampled", "low_rank"]
Matrix = NDArray[np.float64]
PairDistance = Callable[[str, str], float]
"""A function of the names of two tasks, in order of name."""

EXACT_STEPS, SAMPLED_STEPS, LOW_RANK_STEPS = 1000, 30, 200
SAMPLED_POINTS = 100
LOW_RANK_TABLE, LOW_RANK_PLAN = 30, 10


@dataclass(frozen=True)
class GromovWasserstein:
    """The distance between two feature spaces.

    Attributes:
        distance: 1/2 sqrt(min_T sum_ijkl (A_ik - B_jl)^2 T_ij T_kl) over couplings T of uniform
            weights. The problem is not convex: this is the value of the best coupling found, never
            less than the minimum.
        converged: whether the solver met its stopping criterion from the best start; None for
            `sampled`, which runs a fixed number of steps.
        by_start: the distance found from every start; `distance` is the least of them.
    """

    distance: float
    converged: bool | None
    by_start: tuple[float, ...]


@torch.no_grad()
def feature_matrix(backbone: Backbone, batches: Iterable[GraphBatch]) -> Tensor:
    """Compute the graph embeddings (G, d) of all molecules by a backbone in evaluation mode."""
    return torch.cat([mean_readout(backbone(batch), batch) for batch in batches])


def distance_matrix(features: Tensor) -> Matrix:
    """Compute the Euclidean distances between rows, divided by their mean: (n, d) -> (n, n). They
    are the same for a rescaled or rotated feature space.

    Raises:
        InvalidInputError: all rows are the same, or a number is not finite.
    """
    # From differences and not from inner products, whose rounding errors would dominate the
    # distances of nearly equal rows.
    distances = torch.cdist(
        features.double(), features.double(), compute_mode="donot_use_mm_for_euclid_dist"
    ).numpy()
    mean = float(distances.mean())
    if not 0 < mean < np.inf:
        raise InvalidInputError(
            f"features: got molecules at a mean distance of {mean}, expected finite features that"
            " are not all the same"
        )
    return np.asarray(distances / mean)


def gromov_wasserstein(
    a: Matrix, b: Matrix, variant: Variant, restarts: int, generator: np.random.Generator
) -> GromovWasserstein:
    """Compute the Gromov-Wasserstein distance of two spaces: the least that a solver of POT finds
    from several starts.

    Args:
        a, b: distances within the two spaces, (n, n) and (m, m), see `distance_matrix`.
        variant: `exact` is the conditional gradient method on the full tables (Vayer et al. 2019,
            Optimal transport for structured data with application on graphs), started at the
            product of the weights and then at random couplings; `sampled` estimates every step from
            a few pairs of molecules (Kerdoncuff et al. 2021, Sampled Gromov Wasserstein);
            `low_rank` factorises both tables and the coupling, started at random (Scetbon et al.
            2022, Linear-time Gromov Wasserstein distances using low rank couplings and costs).
        restarts: number of starts, at least 1.
        generator: source of the random starts.

    Raises:
        InvalidInputError: a table is not square, or there is no start.
    """
    for name, table in (("a", a), ("b", b)):
        if table.ndim != 2 or table.shape[0] != table.shape[1]:
            raise InvalidInputError(
                f"{name}: got a table of shape {table.shape}, expected distances (n, n)"
            )
    if restarts < 1:
        raise InvalidInputError(f"restarts: got {restarts}, expected at least 1")
    solver = {"exact": _exact, "sampled": _sampled, "low_rank": _low_rank}[variant]
    found = [solver(a, b, start, generator) for start in range(restarts)]
    by_start = [coupling_distance(a, b, plan) for plan, _ in found]
    best = int(np.argmin(by_start))
    return GromovWasserstein(by_start[best], found[best][1], tuple(by_start))


def coupling_distance(a: Matrix, b: Matrix, plan: Matrix) -> float:
    """Compute 1/2 sqrt(sum_ijkl (A_ik - B_jl)^2 T_ij T_kl), the distance that a coupling T (n, m)
    with any marginals gives."""
    rows, columns = plan.sum(1), plan.sum(0)
    value = rows @ a**2 @ rows + columns @ b**2 @ columns - 2 * float(((a @ plan @ b) * plan).sum())
    return 0.5 * float(np.sqrt(max(value, 0.0)))


def _exact(a: Matrix, b: Matrix, start: int, generator: np.random.Generator) -> tuple[Matrix, bool]:
    ot, p, q = _solvers(), _uniform(len(a)), _uniform(len(b))
    # From the product the first step couples molecules by their mean distance to all others, the
    # lower bound of Memoli (2011). Couplings that pair molecules off are nearly stationary, so
    # random starts spread their mass, unevenly.
    begin = np.outer(p, q) if start == 0 else feasible(generator.random((len(a), len(b))) ** 10)
    plan, log = ot.gromov.gromov_wasserstein(
        a, b, p, q, symmetric=True, log=True, G0=begin, max_iter=EXACT_STEPS
    )
    return plan, len(log["loss"]) <= EXACT_STEPS


def _sampled(
    a: Matrix, b: Matrix, start: int, generator: np.random.Generator
) -> tuple[Matrix, None]:
    # Without the entropic term (epsilon = 0): with it a step takes longer, and on the two pairs of
    # models tried the couplings were worse.
    seed = int(generator.integers(2**31))
    plan: Matrix = _solvers().gromov.sampled_gromov_wasserstein(
        a,
        b,
        _uniform(len(a)),
        _uniform(len(b)),
        _square,
        min(SAMPLED_POINTS, len(a)),
        epsilon=0,
        max_iter=SAMPLED_STEPS,
        random_state=seed,
    )
    return plan, None


def _low_rank(
    a: Matrix, b: Matrix, start: int, generator: np.random.Generator
) -> tuple[Matrix, bool]:
    factors = {"cost_factorized_Xs": low_rank(a), "cost_factorized_Xt": low_rank(b)}
    settings = {
        "rank": LOW_RANK_PLAN,
        "numItermax": LOW_RANK_STEPS,
        "seed_init": int(generator.integers(2**31)),
    }
    # POT tells only by a warning that it did not converge.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # POT's threshold is on a step scaled by the gradient: with its default of 1e-4 the solver
        # stops at the start.
        q, r, g = _solvers().gromov.lowrank_gromov_wasserstein_samples(
            a, b, stopThr=1e-10, **factors, **settings
        )
    return feasible((q / g) @ r.T), not caught


def low_rank(table: Matrix, rank: int = LOW_RANK_TABLE) -> tuple[Matrix, Matrix]:
    """Factorise a symmetric table by its eigenvalues of largest magnitude: (n, n) -> left (n, r)
    and right (n, r), with left @ right.T the best approximation of rank r."""
    values, vectors = np.linalg.eigh(table)
    kept = np.argsort(-np.abs(values))[:rank]
    return vectors[:, kept] * values[kept], vectors[:, kept]


def feasible(plan: Matrix) -> Matrix:
    """Round a plan (n, m) with approximately uniform marginals to a coupling with exactly uniform
    ones (Altschuler et al. 2017, arXiv:1705.09634, algorithm 2)."""
    p, q = _uniform(plan.shape[0]), _uniform(plan.shape[1])
    plan = plan / plan.sum()
    plan = plan * np.minimum(p / plan.sum(1), 1)[:, None]
    plan = plan * np.minimum(q / plan.sum(0), 1)
    rows, columns = p - plan.sum(1), q - plan.sum(0)
    missing = float(rows.sum())
    return np.asarray(plan + np.outer(rows, columns) / missing if missing > 0 else plan)


def cka_distance(x: Tensor, y: Tensor) -> float:
    """Compute 1 - linear CKA of features (n, d) and (n, e) of the same molecules (Kornblith et al.
    2019, arXiv:1905.00414): 0 for rotated or rescaled copies.

    Raises:
        InvalidInputError: the numbers of molecules differ.
    """
    if len(x) != len(y):
        raise InvalidInputError(
            f"features: got {len(x)} and {len(y)} molecules, expected the same ones"
        )
    x, y = (features.double() - features.double().mean(0) for features in (x, y))
    similarity = (x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())
    return float(1 - similarity)


def cosine_distance(first: TaskVector, second: TaskVector) -> float:
    """Compute 1 - the cosine of two task vectors, in [0, 2]."""
    one, other = (
        torch.cat([delta.double().flatten() for delta in vector.delta.values()])
        for vector in (first, second)
    )
    return float(1 - one @ other / (one.norm() * other.norm()))


def pair_table(tasks: Sequence[str], value: PairDistance) -> Matrix:
    """Evaluate a function of two tasks for all pairs: (K, K), symmetric, 0 on the diagonal."""
    table = np.zeros((len(tasks), len(tasks)))
    for i, k in itertools.combinations(range(len(tasks)), 2):
        first, second = sorted((tasks[i], tasks[k]))
        table[i, k] = table[k, i] = value(first, second)
    return table


def _square(x: Matrix, y: Matrix) -> Matrix:
    return np.asarray((x - y) ** 2)


def _uniform(count: int) -> Matrix:
    return np.full(count, 1 / count)


def _solvers() -> ModuleType:
    import ot  # takes seconds to import, and is needed only here

    return cast(ModuleType, ot)
