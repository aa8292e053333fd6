import numpy as np
import pytest
import torch

from models.data.fingerprint import WIDTH
from models.experts.combination import ExpertChoice, ForestInfo, ForestMember, combine
from models.experts.contributions import NetworkSum, answer_sum
from tests.forests import random_rows, random_symmetric

LABELS = (2, 0)
ROWS = random_rows(1)
LOGITS = np.array([[0.5, -1.0, 2.0]])
NODES = np.array([[0.25, -0.5], [1.0, 0.75]])
"""Contributions of two nodes to the labels."""


def member(choice: ExpertChoice) -> ForestMember:
    info = ForestInfo(default="both", inputs=("ecfp4",), library="by hand 1", weight=0.25)
    return ForestMember(random_symmetric(3), info, choice, "multilabel")


def network() -> NetworkSum:
    outputs = LOGITS[0, [*LABELS]]
    return NetworkSum(outputs, outputs - NODES.sum(0), NODES)


@pytest.mark.parametrize("choice", ["both", "forest"])
def test_sums_are_the_log_odds_of_the_combination(choice: ExpertChoice) -> None:
    found = answer_sum(network(), ROWS[0], member(choice), LABELS)
    own = {"task": torch.from_numpy(LOGITS).float()}
    answered = combine(own, ROWS, {"task": member(choice)})["task"].values[0, [*LABELS]]
    np.testing.assert_allclose(1 / (1 + np.exp(-found.outputs)), answered, rtol=1e-5)
    whole = found.baseline.copy()
    for expert in found.experts.values():
        if expert.nodes is not None:
            whole += expert.nodes.sum(0)
        if expert.columns is not None:
            whole += expert.columns.sum(1)
    np.testing.assert_allclose(whole, found.outputs, atol=1e-6)
    weights = {name: expert.weight for name, expert in found.experts.items()}
    assert weights == member(choice).info.weights(choice)


def test_the_network_alone_is_not_scaled() -> None:
    """Its temperature is in its head; trees without a fingerprint do not answer."""
    for forest in (None, member("both")):
        found = answer_sum(network(), None, forest, LABELS)
        assert list(found.experts) == ["own"]
        np.testing.assert_array_equal(found.experts["own"].nodes, NODES)
        np.testing.assert_array_equal(found.outputs, network().outputs)


def test_trees_see_no_column_that_is_zero() -> None:
    found = answer_sum(None, np.zeros(WIDTH, np.float32), member("forest"), LABELS)
    assert not found.experts["forest"].columns.any()  # type: ignore[union-attr]
    np.testing.assert_allclose(found.outputs, found.baseline, rtol=1e-6)
