"""Choice of a transport solver by name."""

from typing import get_args

from torch import Tensor

from models.errors import InvalidInputError
from models.transport.exact import exact
from models.transport.problem import SinkhornParams, SinkhornResult, Solver, Support
from models.transport.sinkhorn import sinkhorn


def solve_transport(
    cost: Tensor,
    support: Support,
    *,
    solver: Solver = "sinkhorn",
    params: SinkhornParams | None = None,
) -> SinkhornResult:
    """Solve transport problems with the solver of a given name.

    Args:
        cost: (E, *B) on the entries of `support`.
        support: where mass may move.
        solver: "sinkhorn" or "exact".
        params: of Sinkhorn; unused by the exact solver.

    Raises:
        InvalidInputError: unknown solver, or a cost that `sinkhorn` and `exact` refuse.
    """
    if solver not in get_args(Solver):
        raise InvalidInputError(f"got solver {solver!r}, expected one of {get_args(Solver)}")
    return exact(cost, support) if solver == "exact" else sinkhorn(cost, support, params)
