"""models.transport.solve"""

from typing import get_args

from torch import Tensor

from models.errors import InvalidInputError
from models.transport.exact import exact
from models.transport.problem import SinkhornParams, SinkhornResult, Solver, Support
from models.transport.sinkhorn import sinkhorn


def solve(
    cost: Tensor,
    support: Support,
    *,
    solver: Solver = "sinkhorn",
    params: SinkhornParams | None = None,
) -> SinkhornResult:
    """`sinkhorn` or `exact` by name: cost (E, *B) on `support`. `params` is for Sinkhorn and unused
    by the exact solver.

    Raises:
        InvalidInputError: unknown solver, or as the solver raises.
    """
    if solver not in get_args(Solver):
        raise InvalidInputError(f"got solver {solver!r}, expected one of {get_args(Solver)}")
    return exact(cost, support) if solver == "exact" else sinkhorn(cost, support, params)
