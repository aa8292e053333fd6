"""Linear probes: heads fitted to the embeddings of a network that stays as it is.

A network that is trained from a random head first turns its features to fit that head; from a
fitted head it does not (LP-FT; Kumar et al. 2022, arXiv:2202.10054, section 4).
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from merging.targets.losses import LabelScale
from models.task import Target

Floats = NDArray[np.float64]
INVERSE_PENALTY = 0.01
"""scikit-learn's C of logistic regression, on standardised features."""
PENALTY = 100.0
"""scikit-learn's alpha of ridge regression, on standardised features and labels."""


def fit_probe(embeddings: Tensor, labels: Tensor, target: Target, scale: LabelScale | None) -> Any:
    """Fit a linear head with an L2 penalty: logistic regressions, or ridge regressions on
    standardised labels.

    Args:
        embeddings: (G, d). A column that varies so little beside the others that float32 cannot
            tell gets weights of 0: a unit that is dead in the network.
        labels: (G, L) with NaN where missing, or (G,) classes with -1 where missing.
        target: of the task; of a `multiclass` task all classes must occur.
        scale: of the labels of a regression.

    Returns:
        The state dict of a linear layer: `weight` (L, d) and `bias` (L,) float32. A label with one
        value only, or none, has weight 0; its bias is the logit of (ones + 1/2) / (known + 1), or
        the value.
    """
    columns = embeddings.double().numpy()
    deviations = columns.std(0)
    dead = deviations <= np.finfo(np.float32).eps * deviations.max(initial=0)
    scaler = StandardScaler().fit(columns)
    features = np.where(dead, 0, scaler.transform(columns))
    if target == "multiclass":
        known = (labels >= 0).numpy()
        model = LogisticRegression(C=INVERSE_PENALTY, max_iter=500)
        model.fit(features[known], labels.numpy()[known])
        weight, bias = _as_many_rows(model.coef_), _as_many_rows(model.intercept_)
    else:
        wanted = labels if scale is None else scale.standardise(labels)
        rows = [_fit_label(features, column, target) for column in wanted.double().numpy().T]
        weight, bias = np.stack([row for row, _ in rows]), np.array([number for _, number in rows])
    weight = np.where(dead, 0, weight / scaler.scale_)
    bias = bias - weight @ scaler.mean_
    return {"weight": torch.from_numpy(weight).float(), "bias": torch.from_numpy(bias).float()}


def _as_many_rows(values: Floats) -> Floats:
    """Of two classes scikit-learn has the second's logit only; the first's is then 0."""
    return np.concatenate([np.zeros_like(values), values]) if len(values) == 1 else values


def _fit_label(features: Floats, labels: Floats, target: Target) -> tuple[Floats, float]:
    """Return the weights (d,) and the bias of one label."""
    known = ~np.isnan(labels)
    values = labels[known]
    if len(np.unique(values)) < 2:
        return np.zeros(features.shape[1]), constant_output(values, target)
    if target == "regression":
        model: Any = Ridge(alpha=PENALTY)
    else:
        model = LogisticRegression(C=INVERSE_PENALTY, max_iter=500)
    model.fit(features[known], values)
    return np.ravel(model.coef_), float(np.ravel(model.intercept_)[0])


def constant_output(labels: NDArray[Any], target: Target) -> float:
    """Return the output of a label with one value only, or none: the logit of
    (ones + 1/2) / (known + 1), or the value; 0 for a regression without values."""
    if target == "regression":
        return float(labels[0]) if len(labels) else 0.0
    ones = float(labels.sum())
    return float(np.log((ones + 0.5) / (len(labels) - ones + 0.5)))
