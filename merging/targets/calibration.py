"""Calibration of probabilities by a temperature per label, and its error metrics.

Temperature scaling (Guo et al. 2017, arXiv:1706.04599), one label at a time, with a prior that
keeps labels with few observations near the identity. The scale is positive, so ROC-AUC does not
change. No shift is fitted: it would import the validation class prior, which matches neither train
nor test under a scaffold split (BACE: 86 % positive there, 40 % in training).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor

from models.errors import InvalidInputError

LOG_SCALE_DEVIATION = 0.5
"""Standard deviation of the normal prior of the log scale; its mean 0 is the identity."""
MAX_LOG_SCALE = 10.0
"""Bound of the search, far outside the prior."""


def temperature_scale(logits: Tensor, labels: Tensor) -> Tensor:
    """Fit 1 / temperature of every label by maximum a posteriori; the calibrated probability is
    sigmoid(scale * logit).

    The prior has the weight of a few observations: it dominates with three known positives, and is
    negligible with thousands.

    Args:
        logits: (G, L) of molecules that the model was not trained on.
        labels: (G, L), 0 or 1, NaN where missing.

    Returns:
        The scales (L,), fitted in float64 and returned in the dtype of `logits`; 1 for a label
        without both classes.

    Raises:
        InvalidInputError: logits and labels have different shapes, or a logit is not finite.
    """
    _check(logits, labels)
    if not logits.isfinite().all():
        raise InvalidInputError("logits: got values that are not finite, expected finite ones")
    columns = zip(logits.T.cpu().double().numpy(), labels.T.cpu().double().numpy(), strict=True)
    scales = [_fit_label(*column) for column in columns]
    return torch.tensor(scales, dtype=torch.float64).to(logits)


def _fit_label(logits: NDArray[np.float64], labels: NDArray[np.float64]) -> float:
    known = ~np.isnan(labels)
    logits, labels = logits[known], labels[known]
    if len(np.unique(labels)) < 2:
        return 1.0

    def objective(log_scale: float) -> float:
        """Negative log posterior. It is convex in the scale, so its minimum is unique."""
        calibrated = logits * np.exp(log_scale)
        # logaddexp does not overflow for large logits.
        losses = np.logaddexp(0, calibrated) - labels * calibrated
        return float(losses.sum() + (log_scale / LOG_SCALE_DEVIATION) ** 2 / 2)

    bounds = -MAX_LOG_SCALE, MAX_LOG_SCALE
    minimum = minimize_scalar(objective, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(minimum.x))


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Compute the expected calibration error of probabilities, averaged over labels.

    Molecules are binned into equal intervals of the predicted probability of class 1. The error is
    the mean of |mean probability - share of class 1| over the bins, weighted by their number of
    molecules (Naeini et al. 2015, for class 1 instead of the predicted class). Labels are weighted
    by their number of known values, so that many sparse labels do not dominate.

    Args:
        probabilities: (G, L) in [0, 1].
        labels: (G, L), 0 or 1, NaN where missing.
        bins: number of intervals.

    Returns:
        A number in [0, 1]; NaN if no label is known.

    Raises:
        InvalidInputError: the shapes differ.
    """
    _check(probabilities, labels)
    known = ~labels.isnan()
    interval = (probabilities * bins).long().clamp(0, bins - 1)
    excess = torch.where(known, probabilities - labels, 0.0).double()
    # |mean p - mean y| times the count of a bin is the absolute sum of p - y in it.
    sums = excess.new_zeros(bins, labels.shape[1]).scatter_add_(0, interval, excess)
    return float(sums.abs().sum() / known.sum())


def brier_score(probabilities: Tensor, labels: Tensor) -> float:
    """Compute the mean squared difference between probabilities and known labels (Brier 1950).

    Args:
        probabilities: (G, L) in [0, 1].
        labels: (G, L), 0 or 1, NaN where missing.

    Returns:
        A number in [0, 1]; NaN if no label is known.

    Raises:
        InvalidInputError: the shapes differ.
    """
    _check(probabilities, labels)
    known = ~labels.isnan()
    return float((probabilities - labels)[known].double().square().mean())


def _check(values: Tensor, labels: Tensor) -> None:
    if values.shape != labels.shape or values.dim() != 2:
        raise InvalidInputError(
            f"got values {tuple(values.shape)} and labels {tuple(labels.shape)}, expected both"
            " (molecules, labels)"
        )
