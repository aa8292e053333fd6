import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merging.run.run import Run
from merging.training.metrics import predict, roc_auc
from models.errors import TrainingError
from tests import oracles
from tests.strategies import quick


@settings(quick, max_examples=50)
@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.integers(0, 5)), min_size=2, max_size=30))
def test_equals_the_share_of_ordered_pairs(pairs: list[tuple[float, int]]) -> None:
    labels, scores = [label for label, _ in pairs], [float(score) for _, score in pairs]
    ours = roc_auc(torch.tensor(labels)[:, None], torch.tensor(scores)[:, None]).mean
    if len(set(labels)) < 2:
        assert math.isnan(ours)
    else:
        assert ours == pytest.approx(oracles.roc_auc(labels, scores))


def test_missing_labels_are_masked_and_one_class_labels_left_out() -> None:
    nan = math.nan
    labels = torch.tensor([[1, 0, nan], [0, 0, 1], [nan, 0, 0], [1, 0, 1]])
    scores = torch.tensor([[0.9, 1, 0], [0.1, 2, 3], [5.0, 3, 2], [0.05, 4, 1]])
    result = roc_auc(labels, scores)
    assert result.per_label[0] == 0.5
    assert math.isnan(result.per_label[1])
    assert result.per_label[2] == 0.5
    assert result.mean == 0.5


def test_scores_that_are_no_numbers_are_refused() -> None:
    scores = torch.tensor([[0.1], [math.nan]])
    with pytest.raises(TrainingError, match=r"got answers that are not finite, .*learning_rate"):
        roc_auc(torch.tensor([[0.0], [1.0]]), scores)


def test_prediction_keeps_the_order_of_rows(pico_run: Run) -> None:
    dataset = pico_run.dataset("nitrogen")
    rows = torch.tensor([5, 0, 79, 3, 3])
    counts = predict(
        lambda batch: torch.bincount(batch.batch)[:, None].float(),
        dataset.graphs,
        rows,
        torch.device("cpu"),
        batch_size=2,
    )
    assert torch.equal(counts[:, 0].long(), dataset.graphs.node_counts[rows])
