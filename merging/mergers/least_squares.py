"""Linear layers from what they are to give: the normal equations of every closed-form merger, in
float64.

GNNMerge++ (method, section 7), GFFMerge and RegMean all solve the same problem, each on inputs and
targets of its own: for every linear part `W = argmin sum_k |Z_k W - Y_k|^2 / n_k + rho |W -
W_0|^2`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.errors import InvalidInputError


@dataclass
class NormalEquations:
    """What one teacher says of one linear part, summed over the rows that were seen.

    Attributes:
        gram: (p, p) float64, sum of z^T z.
        moment: (p, q) float64, sum of z^T y.
        count: rows seen.
    """

    gram: Tensor
    moment: Tensor
    count: int = 0

    @classmethod
    def empty(cls, inputs: int, outputs: int) -> "NormalEquations":
        """Nothing seen yet, for inputs (n, p) and targets (n, q)."""
        return cls(
            torch.zeros(inputs, inputs, dtype=torch.float64),
            torch.zeros(inputs, outputs, dtype=torch.float64),
        )

    def add(self, z: Tensor, y: Tensor) -> None:
        """See rows of inputs (n, p) and of targets (n, q). Raises InvalidInputError if they do not
        fit."""
        if (
            z.shape[0] != y.shape[0]
            or z.shape[1:] != self.gram.shape[:1]
            or y.shape[1:] != self.moment.shape[1:]
        ):
            expected = f"(n, {len(self.gram)}) and (n, {self.moment.shape[1]})"
            raise InvalidInputError(
                f"got inputs {tuple(z.shape)} and targets {tuple(y.shape)}, expected {expected}"
            )
        rows = z.detach().double()
        self.gram = self.gram.to(rows.device) + rows.T @ rows
        self.moment = self.moment.to(rows.device) + rows.T @ y.detach().double()
        self.count += len(rows)


def solve(equations: Sequence[NormalEquations], prior: Tensor, ridge: float) -> Tensor:
    """W (p, q) = (sum_k G_k / n_k + rho I)^-1 (sum_k M_k / n_k + rho W_0), float64.

    With K teachers whose parts are one and the same linear map, and that map as the prior, it is
    returned whatever the inputs span: the ridge pulls towards the prior only where the inputs say
    nothing.

    Args:
        equations: one for each teacher; those that saw nothing count nothing.
        prior: W_0 (p, q), such as the mean of the teachers' weights, or zeros for the bare
            equation.
        ridge: rho, on the scale of the mean of z^2.

    Raises:
        InvalidInputError: no teacher saw a row, or the ridge is not positive.
    """
    seen = [each for each in equations if each.count]
    if not seen:
        raise InvalidInputError("got no row of inputs from any teacher, expected at least one")
    if ridge <= 0:
        raise InvalidInputError(f"got ridge {ridge}, expected a positive one")
    gram = torch.stack([each.gram / each.count for each in seen]).sum(0)
    moment = torch.stack([each.moment / each.count for each in seen]).sum(0)
    anchor = prior.to(gram)
    # Solved for the change from the prior: what is already right is not lost to rounding where the
    # Gram matrix is nearly singular.
    change: Tensor = torch.linalg.solve(
        gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device),
        moment - gram @ anchor,
    )
    return anchor + change


def with_ones(z: Tensor) -> Tensor:
    """Inputs (n, p) with a column of ones for the bias: (n, p + 1)."""
    return torch.cat([z, z.new_ones(len(z), 1)], dim=1)
