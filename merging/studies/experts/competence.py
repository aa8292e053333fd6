"""How competent a supervised expert seems for a target, from what is known of it without running
it: its training molecules, their labels, and the errors that it made on molecules like the
target's.

A mixture of graph experts that is routed by metadata asks nothing of the experts that it does not
choose, so that routing costs a search and no forward pass.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from models.domain.neighbours import MoleculeSet, Words

NEAREST = 5
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Knowledge:
    """What an expert leaves beside its weights.

    Attributes:
        trained: its n training molecules; rows are positions in `labels`.
        labels: (n,) their labels.
        judged: its m validation molecules, from which it has not learnt.
        errors: (m,) its absolute errors on them, in standard deviations of its labels.
    """

    trained: MoleculeSet
    labels: Floats
    judged: MoleculeSet
    errors: Floats


def similarity(expert: Knowledge, queries: Words) -> float:
    """Compute the mean over molecules of the Tanimoto similarity to the nearest training molecule
    of an expert.

    Args:
        expert: the expert.
        queries: (q, WORDS), fingerprints of the target's molecules.
    """
    return float(np.mean([expert.trained.nearest(query, 1).similarities[0] for query in queries]))


def near_accuracy(expert: Knowledge, queries: Words) -> float:
    """Compute minus the error that is expected of an expert on molecules.

    For a molecule with mean similarity s to the `NEAREST` molecules that the expert was judged by,
    it is s times their mean error, weighted by similarity, plus 1 - s times 1, a standard
    deviation: an expert is trusted as far as it knows the molecule.
    """
    expected = []
    for query in queries:
        found = expert.judged.nearest(query, NEAREST)
        shares, errors = found.similarities, expert.errors[found.rows]
        local = np.average(errors, weights=shares) if shares.any() else 1.0
        expected.append(shares.mean() * local + 1 - shares.mean())
    return -float(np.mean(expected))


def near_labels(expert: Knowledge, queries: Words, labels: Floats) -> float:
    """Compute how well the labels of an expert's training molecules rank those of a target: the
    rank correlation of the target's labels with the mean labels of the `NEAREST` training
    molecules, weighted by similarity.

    Args:
        expert: the expert.
        queries: (q, WORDS), fingerprints of the target's molecules.
        labels: (q,), their labels for the target.

    Returns:
        The correlation; 0 where all are ranked alike.
    """
    voted = []
    for query in queries:
        found = expert.trained.nearest(query, NEAREST)
        weights = found.similarities if found.similarities.any() else None
        voted.append(np.average(expert.labels[found.rows], weights=weights))
    return correlation(np.array(voted), labels)


def correlation(outputs: Floats, labels: Floats) -> float:
    """Compute Spearman's rank correlation, 0 where either is constant."""
    if min(len(np.unique(outputs)), len(np.unique(labels))) < 2:
        return 0.0
    return float(spearmanr(outputs, labels).statistic)
