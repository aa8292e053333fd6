import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merging.run.run import Run
from merging.targets.metrics import (
    compute_metrics,
    compute_outputs,
    compute_score,
    concordance,
    metric_of_score,
    roc_auc,
    scores_by_metric,
    scores_by_task,
)
from models.errors import InvalidInputError, TrainingError
from models.task import LabelTarget, TaskInfo
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
    counts = compute_outputs(
        lambda batch: torch.bincount(batch.batch)[:, None].float(),
        dataset.graphs,
        rows,
        torch.device("cpu"),
        batch_size=2,
    )
    assert torch.equal(counts[:, 0].long(), dataset.graphs.node_counts[rows])


# --- by target


def info(target: LabelTarget, labels: int = 1) -> TaskInfo:
    return TaskInfo(labels=tuple(f"y{k}" for k in range(labels)), target=target)


def test_score_of_independent_labels_is_their_roc_auc() -> None:
    labels = np.array([[0.0], [1.0], [math.nan], [1.0]], dtype=np.float32)
    output = np.array([[0.0], [1.0], [9.0], [-1.0]], dtype=np.float32)
    assert compute_score(output, labels, info("multilabel")) == pytest.approx(0.5)


def test_score_of_classes_is_the_accuracy_of_the_known_ones() -> None:
    labels = np.array([0, 1, -1, 1])
    output = np.array([[1.0, 0], [1, 0], [1, 0], [0, 1]], dtype=np.float32)
    assert compute_score(output, labels, info("multiclass", 2)) == pytest.approx(2 / 3)
    assert math.isnan(compute_score(output, np.full(4, -1), info("multiclass", 2)))


def test_score_of_numbers_is_minus_their_error_averaged_over_labels() -> None:
    labels = np.array([[0.0, math.nan], [2.0, 4.0]], dtype=np.float32)
    output = np.array([[1.0, 9.0], [2.0, 1.0]], dtype=np.float32)
    value = compute_score(output, labels, info("regression", 2))
    assert value == pytest.approx(-(0.5 + 3) / 2)
    assert metric_of_score(value, "scaled_mae") == -value
    assert metric_of_score(0.7, "roc_auc") == 0.7
    assert math.isnan(compute_score(output, np.full((2, 2), math.nan), info("regression", 2)))


@settings(quick, max_examples=50)
@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=3, max_size=30))
def test_metrics_of_numbers_equal_slow_ones(pairs: list[tuple[int, int]]) -> None:
    labels, output = [float(label) for label, _ in pairs], [float(value) for _, value in pairs]
    column = (np.array(values, dtype=np.float32)[:, None] for values in (output, labels))
    found = compute_metrics(*column, info("regression"))
    errors = [abs(label - value) for label, value in zip(labels, output, strict=True)]
    assert found["mae"] == pytest.approx(sum(errors) / len(errors))
    assert found["rmse"] == pytest.approx(math.sqrt(sum(e * e for e in errors) / len(errors)))
    mean = sum(labels) / len(labels)
    spread = sum((label - mean) ** 2 for label in labels)
    if spread:
        assert found["r2"] == pytest.approx(1 - sum(e * e for e in errors) / spread, abs=1e-9)
    else:
        assert math.isnan(found["r2"])
    ranks = [oracles.mean_ranks(labels), oracles.mean_ranks(output)]
    if len(set(labels)) > 1 and len(set(output)) > 1:
        assert found["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-9)
    else:
        assert math.isnan(found["spearman"])


def test_metrics_mask_what_is_missing_and_average_over_labels() -> None:
    nan = math.nan
    labels = np.array([[1.0, nan], [3.0, 5.0], [nan, 5.0], [5.0, 5.0]], dtype=np.float32)
    output = np.array([[2.0, 8.0], [2.0, 6.0], [7.0, 4.0], [2.0, 5.0]], dtype=np.float32)
    found = compute_metrics(output, labels, info("regression", 2))
    assert found["mae"] == pytest.approx(((1 + 1 + 3) / 3 + (1 + 1 + 0) / 3) / 2)
    first = compute_metrics(output[[0, 1, 3], :1], labels[[0, 1, 3], :1], info("regression"))
    assert found["r2"] == first["r2"]  # the second label is constant: it has none
    assert math.isnan(found["spearman"])  # the first answer is constant, and so is the second label


def test_metrics_of_labels_and_classes() -> None:
    labels = np.array([[1.0], [0], [1], [0]], dtype=np.float32)
    output = np.array([[3.0], [2], [1], [0]], dtype=np.float32)
    found = compute_metrics(output, labels, info("multilabel"))
    assert found["roc_auc"] == pytest.approx(0.75)
    assert found["auprc"] == pytest.approx((1 / 1 + 2 / 3) / 2)
    classes, logits = (
        np.array([0, 1, 2, -1]),
        np.array([[9.0, 0, 0], [0, 5, 6], [0, 0, 9], [9, 9, 9]], dtype=np.float32),
    )
    several = compute_metrics(logits, classes, info("multiclass", 3))
    assert several.keys() == {"accuracy", "roc_auc", "auprc"}
    assert several["accuracy"] == pytest.approx(2 / 3)
    assert several["roc_auc"] == pytest.approx(1.0)  # each class has the highest rank in its column


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(TrainingError, match="not finite"):
        compute_metrics(np.array([[math.inf]]), np.array([[1.0]]), info("regression"))
    field = TaskInfo(labels=("energy",), target="energy_and_forces")
    with pytest.raises(InvalidInputError, match="got 'energy_and_forces', expected one of"):
        compute_score(np.zeros((1, 1)), np.zeros((1, 1)), field)


# --- the metric of a task


def test_a_task_is_judged_by_its_own_metric() -> None:
    labels = np.array([[1.0], [0.0], [1.0], [0.0]], dtype=np.float32)
    output = np.array([[3.0], [2.0], [1.0], [0.0]], dtype=np.float32)
    binary = TaskInfo(labels=("y",), metric="auprc")
    assert compute_score(output, labels, binary) == pytest.approx((1 + 2 / 3) / 2)
    assert math.isnan(compute_score(output, np.zeros((4, 1)), binary))
    ranked = TaskInfo(labels=("y",), target="regression", metric="spearman")
    numbers = np.array([[1.0], [3.0], [2.0], [4.0]], dtype=np.float32)
    assert compute_score(numbers**3, numbers, ranked) == pytest.approx(1)
    assert compute_score(-numbers, numbers, ranked) == pytest.approx(-1)


def test_errors_of_logarithms_are_in_the_unit_and_their_score_is_not() -> None:
    task = TaskInfo(labels=("y",), target="regression", scale="log10")
    output = np.array([[0.0], [1.0], [2.0]], dtype=np.float32)
    labels = np.array([[1.0], [1.0], [math.nan]], dtype=np.float32)
    found = compute_metrics(output, labels, task)
    assert found["mae"] == pytest.approx(4.5)  # of 1 where it is 10, and of 10 where it is 10
    assert found["rmse"] == pytest.approx(math.sqrt(81 / 2))
    assert compute_score(output, labels, task) == pytest.approx(-0.5)


def test_scores_are_grouped_by_name_and_back() -> None:
    infos = {
        "a": TaskInfo(labels=("y",)),
        "b": TaskInfo(labels=("y",), metric="auprc"),
        "c": TaskInfo(labels=("y",), target="regression"),
        "d": TaskInfo(labels=("y",), target="regression", metric="spearman"),
    }
    scores = {"a": 0.7, "b": 0.6, "c": -0.5, "d": 0.4}
    grouped = scores_by_metric(scores, infos)
    assert grouped["scaled_mae"] == {"c": 0.5}
    assert scores_by_task(grouped) == {
        "a": ("roc_auc", 0.7),
        "b": ("auprc", 0.6),
        "c": ("scaled_mae", 0.5),
        "d": ("spearman", 0.4),
    }


def test_concordance_is_roc_auc_for_two_values_and_counts_pairs_for_numbers() -> None:
    generator = np.random.default_rng(0)
    outputs = generator.integers(0, 9, (60, 2)).astype(np.float32)
    labels = generator.integers(0, 2, (60, 2)).astype(np.float32)
    labels[::7, 0] = np.nan
    assert concordance(outputs, labels) == pytest.approx(
        roc_auc(torch.from_numpy(labels), torch.from_numpy(outputs)).mean
    )
    numbers = np.array([[1.0], [2.0], [3.0], [3.0]])
    # Of the five pairs with different labels two are in order, and one is a draw.
    found = concordance(np.array([[0.0], [0.5], [0.5], [-1.0]]), numbers)
    assert found == pytest.approx((2 + 0.5) / 5)
    assert np.isnan(concordance(numbers, np.ones((4, 1))))
