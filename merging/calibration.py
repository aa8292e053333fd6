"""Calibrated probabilities: a scale and a shift of each label's logit, fitted after training and folded into the head.

Platt scaling (Platt 1999) with a prior that holds labels with little evidence near the identity. The scale is positive, so ROC-AUC does not change.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from models.errors import InvalidInputError

LOG_SCALE_DEVIATION = 0.5
SHIFT_DEVIATION = 1.0
"""Standard deviations of the normal priors of log scale and of shift; 0 is the identity for both.

Chosen among ten pairs by two-fold cross-validation on the validation parts of the eight fine-tuned GCNs (mean cross-entropy 0.2417). Without a
prior it is 0.2473, most of it lost on SIDER and ToxCast, where labels have few known values; uncalibrated it is 0.2932.
"""


@dataclass(frozen=True)
class Platt:
    """Calibrated probability = sigmoid(scale * logit + shift).

    Attributes:
        scale: (C,) positive.
        shift: (C,).
    """

    scale: Tensor
    shift: Tensor

    def apply(self, logits: Tensor) -> Tensor:
        """Calibrated logits: (G, C) -> (G, C)."""
        return logits * self.scale + self.shift

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weight (C, d) and bias (C,) of the linear head whose logits are the calibrated ones of the given head."""
        return weight * self.scale[:, None], bias * self.scale + self.shift


def fit_platt(logits: Tensor, labels: Tensor) -> Platt:
    """The scale and shift of each label by maximum a posteriori; the identity for a label without both classes.

    The prior weighs as much as a few observations: it decides where three positives are all that is known, and is lost among thousands.

    Args:
        logits: (G, C) of molecules that the model was not trained on.
        labels: (G, C), 0 or 1, NaN where missing.

    Returns:
        Scale and shift (C,) in the dtype of `logits`; the fit is in float64.

    Raises:
        InvalidInputError: logits and labels of different shapes, or logits that are not finite.
    """
    _check(logits, labels)
    if not logits.isfinite().all():
        raise InvalidInputError("logits: got values that are not finite, expected finite ones")
    columns = zip(logits.T.cpu().double().numpy(), labels.T.cpu().double().numpy(), strict=True)
    parameters = torch.from_numpy(np.stack([_fit_label(column, values) for column, values in columns]))
    return Platt(*parameters.to(logits).T)


def _fit_label(logits: NDArray[np.float64], labels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale and shift (2,) of one label."""
    known = ~np.isnan(labels)
    logits, labels = logits[known], labels[known]
    if len(np.unique(labels)) < 2:
        return np.array([1.0, 0.0])
    precision = np.array([LOG_SCALE_DEVIATION, SHIFT_DEVIATION]) ** -2

    def objective(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Negative log posterior at (log scale, shift), and its gradient."""
        scaled = logits * np.exp(parameters[0])
        calibrated = scaled + parameters[1]
        losses = np.logaddexp(0, calibrated) - labels * calibrated  # no overflow where a logit is large
        excess = np.exp(calibrated - np.logaddexp(0, calibrated)) - labels
        gradient = np.array([excess @ scaled, excess.sum()]) + precision * parameters
        return losses.sum() + precision @ parameters**2 / 2, gradient

    log_scale, shift = minimize(objective, np.zeros(2), jac=True, method="L-BFGS-B", options={"ftol": 1e-12, "gtol": 1e-6}).x
    return np.array([np.exp(log_scale), shift])


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """How far predicted probabilities are from observed frequencies, in [0, 1]; NaN without any known label.

    For each label: its known molecules fall into `bins` equal intervals of the predicted probability of class 1; in each |mean probability - share of
    class 1|, averaged over intervals by their number of molecules (Naeini et al. 2015, here of class 1 and not of the predicted class). Over labels:
    averaged by their number of known molecules, so that labels with hundreds of them are not drowned by many labels with a few.

    Args:
        probabilities: (G, C) in [0, 1].
        labels: (G, C), 0 or 1, NaN where missing.
        bins: number of intervals.
    """
    _check(probabilities, labels)
    known = ~labels.isnan()
    interval = (probabilities * bins).long().clamp(0, bins - 1)
    excess = torch.where(known, probabilities - labels, 0.0).double()
    # |mean p - mean y| times the count of an interval is the absolute sum of p - y in it
    sums = excess.new_zeros(bins, labels.shape[1]).scatter_add_(0, interval, excess)
    return float(sums.abs().sum() / known.sum())


def brier_score(probabilities: Tensor, labels: Tensor) -> float:
    """Mean squared difference of probability and label over the known ones of (G, C), in [0, 1]; NaN without any (Brier 1950)."""
    _check(probabilities, labels)
    known = ~labels.isnan()
    return float((probabilities - labels)[known].double().square().mean())


def _check(values: Tensor, labels: Tensor) -> None:
    if values.shape != labels.shape or values.dim() != 2:
        raise InvalidInputError(f"got values {tuple(values.shape)} and labels {tuple(labels.shape)}, expected both (molecules, labels)")
