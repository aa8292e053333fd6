"""How good a frozen encoder is: a logistic regression on what it says of each node or graph."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from merging.studies.experts.domains import Domain
from merging.training.metrics import roc_auc
from models.data.batch import GraphBatch, mean_readout

STRENGTHS = (0.01, 0.1, 1.0)
"""The inverse penalties C that are tried; the validation part decides."""


@dataclass(frozen=True)
class Score:
    """Accuracy (classes of nodes) or ROC-AUC (labels of molecules) in [0, 1], on the validation and
    the test part."""

    valid: float
    test: float


def probe(domain: Domain, encoder: Callable[[GraphBatch], Tensor]) -> Score:
    """Embed a domain with an encoder that gives (N, d), and fit on the training part's labels; the
    encoder is not changed.

    Molecules are the mean of their atoms. Every dimension is standardised by the training part.
    """
    with torch.no_grad():
        h = encoder(domain.evaluated)
    h = h if domain.has_node_labels else mean_readout(h, domain.evaluated)
    train = h[domain.split.train]
    features = ((h - train.mean(0)) / train.std(0).clamp(min=1e-6)).double().numpy()
    predict = _classes if domain.has_node_labels else _logits
    tried = [predict(features, domain, strength) for strength in STRENGTHS]
    valid, outputs = max(
        ((_measure(domain, each, domain.split.valid), each) for each in tried),
        key=lambda pair: pair[0],
    )
    return Score(valid, _measure(domain, outputs, domain.split.test))


def _measure(domain: Domain, outputs: Tensor, rows: Tensor) -> float:
    """Accuracy on the rows that have a class, or ROC-AUC."""
    if not domain.has_node_labels:
        return roc_auc(domain.labels[rows], outputs[rows]).mean
    rows = rows[domain.labels[rows] >= 0]
    return float((outputs[rows] == domain.labels[rows]).double().mean())


def _classes(features: NDArray[np.float64], domain: Domain, strength: float) -> Tensor:
    """(N,) the class of each node."""
    train = domain.split.train
    model = LogisticRegression(C=strength, max_iter=1000).fit(
        features[train.numpy()], domain.labels[train].numpy()
    )
    return torch.from_numpy(model.predict(features))


def _logits(features: NDArray[np.float64], domain: Domain, strength: float) -> Tensor:
    """(G, C): a regression per label on the molecules whose label is known; a label with one class
    in the training part says nothing."""
    logits = torch.zeros(domain.labels.shape, dtype=torch.float64)
    for label, column in enumerate(domain.labels.T):
        known = domain.split.train[~column[domain.split.train].isnan()]
        if column[known].unique().numel() == 2:
            # Newton's method: for a few hundred rows and dozens of features it takes milliseconds,
            # and it converges.
            model = LogisticRegression(C=strength, solver="newton-cholesky").fit(
                features[known.numpy()], column[known].numpy()
            )
            logits[:, label] = torch.from_numpy(model.decision_function(features))
    return logits
