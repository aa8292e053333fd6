"""Calibrated probabilities: a temperature for each label, fitted after training and folded into the
head.

Temperature scaling (Guo et al. 2017, arXiv:1706.04599), one label at a time, with a prior that
holds labels with little evidence near the identity. The scale is positive, so ROC-AUC does not
change. No shift is fitted: it would carry over the validation part's share of positives, and in a
scaffold split that is nobody's (BACE: 86 % there, 40 % in training).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor

from models.errors import InvalidInputError

LOG_SCALE_DEVIATION = 0.5
"""Standard deviation of the normal prior of the log scale; 0 is the identity."""
MAX_LOG_SCALE = 10.0
"""Where the search ends; the prior lets no fit come near."""


def fit_scale(logits: Tensor, labels: Tensor) -> Tensor:
    """The scale of each label (C,), 1 / temperature, by maximum a posteriori: calibrated
    probability = sigmoid(scale * logit).

    1 for a label without both classes. The prior weighs as much as a few observations: it decides
    where three positives are all that is known, and is lost among thousands.

    Args:
        logits: (G, C) of molecules that the model was not trained on.
        labels: (G, C), 0 or 1, NaN where missing.

    Returns:
        In the dtype of `logits`; the fit is in float64.

    Raises:
        InvalidInputError: logits and labels of different shapes, or logits that are not finite.
    """
    _check(logits, labels)
    if not logits.isfinite().all():
        raise InvalidInputError("logits: got values that are not finite, expected finite ones")
    columns = zip(logits.T.cpu().double().numpy(), labels.T.cpu().double().numpy(), strict=True)
    return torch.tensor(
        [_fit_label(column, values) for column, values in columns], dtype=torch.float64
    ).to(logits)


def _fit_label(logits: NDArray[np.float64], labels: NDArray[np.float64]) -> float:
    known = ~np.isnan(labels)
    logits, labels = logits[known], labels[known]
    if len(np.unique(labels)) < 2:
        return 1.0

    def objective(log_scale: float) -> float:
        """Negative log posterior; it is convex in the scale, and has one minimum in its
        logarithm."""
        calibrated = logits * np.exp(log_scale)
        # no overflow where a logit is large
        losses = np.logaddexp(0, calibrated) - labels * calibrated
        return float(losses.sum() + (log_scale / LOG_SCALE_DEVIATION) ** 2 / 2)

    return float(
        np.exp(
            minimize_scalar(
                objective,
                bounds=(-MAX_LOG_SCALE, MAX_LOG_SCALE),
                method="bounded",
                options={"xatol": 1e-6},
            ).x
        )
    )


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """How far predicted probabilities are from observed frequencies, in [0, 1]; NaN without any
    known label.

    For each label: its known molecules fall into `bins` equal intervals of the predicted
    probability of class 1; in each |mean probability - share of class 1|, averaged over intervals
    by their number of molecules (Naeini et al. 2015, here of class 1 and not of the predicted
    class). Over labels: averaged by their number of known molecules, so that labels with hundreds
    of them are not drowned by many labels with a few.

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
    """Mean squared difference of probability and label over the known ones of (G, C), in [0, 1];
    NaN without any (Brier 1950)."""
    _check(probabilities, labels)
    known = ~labels.isnan()
    return float((probabilities - labels)[known].double().square().mean())


def _check(values: Tensor, labels: Tensor) -> None:
    if values.shape != labels.shape or values.dim() != 2:
        raise InvalidInputError(
            f"got values {tuple(values.shape)} and labels {tuple(labels.shape)}, expected both"
            " (molecules, labels)"
        )
