"""How far two fine-tuned models are from each other: Gromov-Wasserstein between their feature
spaces, CKA, and the cosine of their task vectors.

Gromov-Wasserstein compares two tables of distances between molecules, so neither the molecules nor
the widths of the two models need be the same (Memoli 2011, Gromov-Wasserstein distances and the
metric approach to object matching). As a planner of merges: Fang et al. 2025, Efficient multi-task
inferencing: model merging with Gromov-Wasserstein feature alignment, arXiv:2503.09774.
"""

import warnings
from collections.abc import Iterable
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

EXACT_STEPS, SAMPLED_STEPS, LOW_RANK_STEPS = 1000, 30, 200
SAMPLED_POINTS = 100
LOW_RANK_TABLE, LOW_RANK_PLAN = 30, 10


@dataclass(frozen=True)
class GromovWasserstein:
    """The distance of two feature spaces.

    Attributes:
        distance: 1/2 sqrt(min_T sum_ijkl (A_ik - B_jl)^2 T_ij T_kl) over couplings T of uniform
            weights, as far as the solver got: the problem is not convex, and what is given is the
            value of a coupling that was found, so never less than the minimum.
        converged: whether the solver stopped by itself at the best start; None for `sampled`, which
            only ever runs a number of steps.
        by_start: the distance that each start led to, in their order; `distance` is the least.
    """

    distance: float
    converged: bool | None
    by_start: tuple[float, ...]


@torch.no_grad()
def feature_matrix(backbone: Backbone, batches: Iterable[GraphBatch]) -> Tensor:
    """What a model's head reads: graph embeddings (G, d) of all molecules; the backbone is in
    evaluation mode."""
    return torch.cat([mean_readout(backbone(batch), batch) for batch in batches])


def distance_matrix(features: Tensor) -> Matrix:
    """Euclidean distances between the rows of (n, d), divided by their mean: (n, n). A rescaled or
    rotated feature space has the same.

    Raises:
        InvalidInputError: all rows are the same, or a number is not finite.
    """
    # By differences, not by products: rows that are nearly the same have a distance, not the root
    # of a rounding error.
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
    """The least distance that `restarts` starts of a solver of POT lead to.

    Args:
        a, b: distances within each space, (n, n) and (m, m), see `distance_matrix`.
        variant: `exact` is the conditional gradient method on the full tables (Vayer et al. 2019,
            Optimal transport for structured data with application on graphs), which starts at the
            product of the weights and then at random couplings; `sampled` takes each step from a
            few pairs of molecules, drawn anew (Kerdoncuff et al. 2021, Sampled Gromov Wasserstein);
            `low_rank` has factors in place of both tables and of the coupling, and starts at random
            (Scetbon et al. 2022, Linear-time Gromov Wasserstein distances using low rank couplings
            and costs).
        restarts: how many starts, at least 1.
        generator: of the random starts.

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
    solve = {"exact": _exact, "sampled": _sampled, "low_rank": _low_rank}[variant]
    found = [solve(a, b, start, generator) for start in range(restarts)]
    by_start = [coupling_distance(a, b, plan) for plan, _ in found]
    best = int(np.argmin(by_start))
    return GromovWasserstein(by_start[best], found[best][1], tuple(by_start))


def coupling_distance(a: Matrix, b: Matrix, plan: Matrix) -> float:
    """1/2 sqrt(sum_ijkl (A_ik - B_jl)^2 T_ij T_kl) of a coupling T (n, m) with any weights."""
    rows, columns = plan.sum(1), plan.sum(0)
    value = rows @ a**2 @ rows + columns @ b**2 @ columns - 2 * float(((a @ plan @ b) * plan).sum())
    return 0.5 * float(np.sqrt(max(value, 0.0)))


def _exact(a: Matrix, b: Matrix, start: int, generator: np.random.Generator) -> tuple[Matrix, bool]:
    ot, p, q = _solvers(), _uniform(len(a)), _uniform(len(b))
    # The first step from the product couples molecules by their mean distance to all others, which
    # is the bound that Memoli (2011) starts from. From one that pairs molecules off hardly any step
    # leads away, so random starts spread their mass, unevenly.
    begin = np.outer(p, q) if start == 0 else feasible(generator.random((len(a), len(b))) ** 10)
    plan, log = ot.gromov.gromov_wasserstein(
        a, b, p, q, symmetric=True, log=True, G0=begin, max_iter=EXACT_STEPS
    )
    return plan, len(log["loss"]) <= EXACT_STEPS


def _sampled(
    a: Matrix, b: Matrix, start: int, generator: np.random.Generator
) -> tuple[Matrix, None]:
    # Without its entropic term (epsilon = 0): with it a step takes longer, and on the two pairs of
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
    # POT has no other way to tell that it did not converge
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        # The threshold is on a step that POT scales by the gradient: with its default, 1e-4,
        # nothing moves from the start.
        q, r, g = _solvers().gromov.lowrank_gromov_wasserstein_samples(
            a, b, stopThr=1e-10, **factors, **settings
        )
    return feasible((q / g) @ r.T), not said


def low_rank(table: Matrix, rank: int = LOW_RANK_TABLE) -> tuple[Matrix, Matrix]:
    """The best factors (n, r), (n, r) of a symmetric table, of its eigenvalues that are largest by
    magnitude."""
    values, vectors = np.linalg.eigh(table)
    kept = np.argsort(-np.abs(values))[:rank]
    return vectors[:, kept] * values[kept], vectors[:, kept]


def feasible(plan: Matrix) -> Matrix:
    """The coupling of uniform weights near a plan whose weights are only nearly so (Altschuler et
    al. 2017, arXiv:1705.09634, algorithm 2)."""
    p, q = _uniform(plan.shape[0]), _uniform(plan.shape[1])
    plan = plan / plan.sum()
    plan = plan * np.minimum(p / plan.sum(1), 1)[:, None]
    plan = plan * np.minimum(q / plan.sum(0), 1)
    rows, columns = p - plan.sum(1), q - plan.sum(0)
    missing = float(rows.sum())
    return np.asarray(plan + np.outer(rows, columns) / missing if missing > 0 else plan)


def cka_distance(x: Tensor, y: Tensor) -> float:
    """1 - linear CKA of features (n, d), (n, e) of the same molecules (Kornblith et al. 2019,
    arXiv:1905.00414): 0 for rotated or rescaled copies.

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
    """1 - cosine of two task vectors, in [0, 2]."""
    one, other = (
        torch.cat([delta.double().flatten() for delta in vector.delta.values()])
        for vector in (first, second)
    )
    return float(1 - one @ other / (one.norm() * other.norm()))


def _square(x: Matrix, y: Matrix) -> Matrix:
    return np.asarray((x - y) ** 2)


def _uniform(count: int) -> Matrix:
    return np.full(count, 1 / count)


def _solvers() -> ModuleType:
    import ot  # takes seconds to import, and is needed only here

    return cast(ModuleType, ot)
