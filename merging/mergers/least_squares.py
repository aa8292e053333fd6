"""Ridge regression towards a prior: the normal equations of the closed-form mergers, in float64.

GNNMerge++ (method, section 7), GFFMerge and RegMean solve the same problem for every linear map,
with different inputs and targets: `W = argmin sum_k |Z_k W - Y_k|^2 / n_k + rho |W - W_0|^2`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.errors import InvalidInputError


@dataclass
class NormalEquations:
    """The normal equations of one linear map on one teacher's rows, accumulated batch by batch.

    Attributes:
        gram: (p, p) float64, the sum of z^T z over the rows added.
        moment: (p, q) float64, the sum of z^T y.
        count: number of rows added.
    """

    gram: Tensor
    moment: Tensor
    count: int = 0

    @classmethod
    def empty(cls, inputs: int, outputs: int) -> "NormalEquations":
        """Return the equations before any row, for `inputs` = p and `outputs` = q columns."""
        return cls(
            torch.zeros(inputs, inputs, dtype=torch.float64),
            torch.zeros(inputs, outputs, dtype=torch.float64),
        )

    def add(self, z: Tensor, y: Tensor) -> None:
        """Add rows of inputs (n, p) and of targets (n, q).

        Raises:
            InvalidInputError: the numbers of rows differ, or the widths are not p and q.
        """
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


def averaged(equations: Sequence[NormalEquations]) -> tuple[Tensor, Tensor]:
    """Sum the teachers' mean equations: (sum_k G_k / n_k, sum_k M_k / n_k); teachers without rows
    contribute nothing.

    Raises:
        InvalidInputError: no teacher has a row.
    """
    seen = [teacher for teacher in equations if teacher.count]
    if not seen:
        raise InvalidInputError("got no row of inputs from any teacher, expected at least one")
    gram = torch.stack([teacher.gram / teacher.count for teacher in seen]).sum(0)
    return gram, torch.stack([teacher.moment / teacher.count for teacher in seen]).sum(0)


def solve_ridge(equations: Sequence[NormalEquations], prior: Tensor, ridge: float) -> Tensor:
    """Solve for the weight W (p, q) = (sum_k G_k / n_k + rho I)^-1 (sum_k M_k / n_k + rho W_0).

    If all teachers have the same linear map and it is the prior, it is returned whatever the inputs
    span: the ridge pulls towards the prior only in directions without inputs.

    Args:
        equations: one for each teacher; those without rows contribute nothing.
        prior: W_0 (p, q), such as the mean of the teachers' weights, or zeros.
        ridge: rho, on the scale of the mean of z^2.

    Returns:
        W in float64.

    Raises:
        InvalidInputError: no teacher has a row, or the ridge is not positive.
    """
    gram, moment = averaged(equations)
    if ridge <= 0:
        raise InvalidInputError(f"got ridge {ridge}, expected a positive one")
    anchor = prior.to(gram)
    # Solved for the change from the prior, so that rounding loses nothing of the prior where the
    # Gram matrix is nearly singular.
    change: Tensor = torch.linalg.solve(
        gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device),
        moment - gram @ anchor,
    )
    return anchor + change


def with_ones(z: Tensor) -> Tensor:
    """Append a column of ones for the bias: (n, p) -> (n, p + 1)."""
    return torch.cat([z, z.new_ones(len(z), 1)], dim=1)
