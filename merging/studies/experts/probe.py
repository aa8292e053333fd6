"""The probe of a frozen encoder: a logistic regression on its embeddings of nodes or graphs."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from merging.studies.experts.domains import Domain
from merging.targets.metrics import roc_auc
from models.data.batch import GraphBatch, mean_readout

STRENGTHS = (0.01, 0.1, 1.0)
"""The inverse penalties C that are tried; the validation score selects one."""


@dataclass(frozen=True)
class Score:
    """Accuracy (classes of nodes) or ROC-AUC (labels of molecules) in [0, 1], on the validation and
    the test rows."""

    valid: float
    test: float


def probe(domain: Domain, encoder: Callable[[GraphBatch], Tensor]) -> Score:
    """Embed a domain with an encoder, fit a logistic regression to the training labels, and score
    it.

    The embedding of a molecule is the mean over its atoms. Every dimension is standardised by the
    training rows.

    Args:
        domain: graphs, labels and split.
        encoder: computes node embeddings (N, d); it is not changed.
    """
    with torch.no_grad():
        h = encoder(domain.evaluated)
    h = h if domain.has_node_labels else mean_readout(h, domain.evaluated)
    train = h[domain.split.train]
    features = ((h - train.mean(0)) / train.std(0).clamp(min=1e-6)).double().numpy()
    fitted = _classes if domain.has_node_labels else _logits
    tried = [fitted(features, domain, strength) for strength in STRENGTHS]
    scores = [_measure(domain, outputs, domain.split.valid) for outputs in tried]
    best = scores.index(max(scores))
    return Score(scores[best], _measure(domain, tried[best], domain.split.test))


def _measure(domain: Domain, outputs: Tensor, rows: Tensor) -> float:
    """Accuracy on the rows with a known class, or ROC-AUC."""
    if not domain.has_node_labels:
        return roc_auc(domain.labels[rows], outputs[rows]).mean
    rows = rows[domain.labels[rows] >= 0]
    return float((outputs[rows] == domain.labels[rows]).double().mean())


def _classes(features: NDArray[np.float64], domain: Domain, strength: float) -> Tensor:
    """(N,), the predicted class of every node."""
    train = domain.split.train
    model = LogisticRegression(C=strength, max_iter=1000).fit(
        features[train.numpy()], domain.labels[train].numpy()
    )
    return torch.from_numpy(model.predict(features))


def _logits(features: NDArray[np.float64], domain: Domain, strength: float) -> Tensor:
    """(G, C), by a regression per label on the training molecules whose label is known; 0 for a
    label with one class among them."""
    logits = torch.zeros(domain.labels.shape, dtype=torch.float64)
    for label, column in enumerate(domain.labels.T):
        known = domain.split.train[~column[domain.split.train].isnan()]
        if column[known].unique().numel() == 2:
            # Newton's method takes milliseconds for a few hundred rows and dozens of features, and
            # it converges.
            model = LogisticRegression(C=strength, solver="newton-cholesky").fit(
                features[known.numpy()], column[known].numpy()
            )
            logits[:, label] = torch.from_numpy(model.decision_function(features))
    return logits
