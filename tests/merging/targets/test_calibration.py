import math

import pytest
import torch
from torch import Tensor

from merging.targets.calibration import brier_score, expected_calibration_error, temperature_scale
from models.errors import InvalidInputError


def drawn(count: int, scale: float = 1.0, labels: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (count, labels), and labels drawn from sigmoid(scale * logit): what a fit must
    find."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, labels, generator=generator)
    return logits, torch.bernoulli((scale * logits).sigmoid(), generator=generator)


def log_posterior(logits: Tensor, labels: Tensor, scale: float) -> float:
    """Slow and obvious, one molecule at a time; the prior as documented: deviation 0.5."""
    total = -((math.log(scale) / 0.5) ** 2) / 2
    for logit, label in zip(logits.tolist(), labels.tolist(), strict=True):
        if not math.isnan(label):
            probability = 1 / (1 + math.exp(-scale * logit))
            total += math.log(probability if label == 1 else 1 - probability)
    return total


@pytest.mark.parametrize("scale", [1.0, 0.3, 2.5])
def test_finds_a_known_temperature(scale: float) -> None:
    assert float(temperature_scale(*drawn(20_000, scale))) == pytest.approx(scale, rel=0.06)


def test_no_other_scale_has_a_higher_posterior() -> None:
    logits, labels = drawn(30, 0.5)
    labels[::7] = math.nan
    scale = float(temperature_scale(logits, labels))
    best = log_posterior(logits[:, 0], labels[:, 0], scale)
    assert best > max(
        log_posterior(logits[:, 0], labels[:, 0], other)
        for other in (0.99 * scale, 1.01 * scale, 0.1, 0.3, 1.0, 3.0)
    )


def test_labels_without_both_classes_stay_as_they_are() -> None:
    logits, labels = drawn(100, 0.2, labels=4)
    labels[:, 0], labels[:, 1], labels[:, 2] = 0, 1, math.nan
    scale = temperature_scale(logits, labels)
    assert scale[:3].tolist() == [1, 1, 1]
    assert float(scale[3]) < 0.6


def test_three_positives_move_little_where_many_would_move_far() -> None:
    # perfectly separated: without a prior the scale has no bound
    logits, labels = (
        torch.tensor([[-1.0], [-1.0], [-2.0], [1.0], [1.0], [2.0]]),
        torch.tensor([[0.0], [0.0], [0.0], [1.0], [1.0], [1.0]]),
    )
    few = temperature_scale(logits, labels)
    many = temperature_scale(logits.repeat(500, 1), labels.repeat(500, 1))
    assert 1 < float(few) < 2
    assert float(many) > 3


def test_scale_is_positive_where_the_logits_point_the_wrong_way() -> None:
    assert 0 < float(temperature_scale(*drawn(2000, scale=-1))) < 0.2


def test_huge_logits_do_not_overflow() -> None:
    logits, labels = drawn(500, 0.5)
    logits = logits.double() * 1e4
    signed = torch.where(labels == 1, logits, -logits)

    def posterior(scale: float) -> float:
        likelihood = float(torch.nn.functional.logsigmoid(scale * signed).sum())
        return likelihood - (math.log(scale) / 0.5) ** 2 / 2

    scale = float(temperature_scale(logits, labels))
    others = (0.99 * scale, 1.01 * scale, 1e-5, 1e-3, 1.0)
    assert posterior(scale) > max(posterior(other) for other in others)


def test_each_label_by_itself_and_missing_values_left_out() -> None:
    logits, labels = drawn(300, 0.5, labels=3)
    labels[:100, 1] = math.nan
    scale = temperature_scale(logits, labels)
    torch.testing.assert_close(temperature_scale(logits[100:, 1:2], labels[100:, 1:2]), scale[1:2])
    assert scale.dtype == logits.dtype


def test_calibration_error_by_hand() -> None:
    nan = math.nan
    probabilities = torch.tensor([[0.1, 0.9], [0.3, 0.9], [0.3, 0.1], [0.8, 0.5], [1.0, 0.2]])
    labels = torch.tensor([[0.0, 1.0], [1.0, nan], [0.0, nan], [1.0, nan], [1.0, nan]])
    # two intervals; first label: |0.7 - 1| of three molecules, |1.8 - 2| of two; second label: |0.9
    # - 1|; six known in all
    assert expected_calibration_error(probabilities, labels, bins=2) == pytest.approx(
        (0.3 + 0.2 + 0.1) / 6
    )
    # four intervals: 0.1 | 0.3 and 0.3 | | 0.8 and 1.0, which belongs to the last
    assert expected_calibration_error(probabilities[:, :1], labels[:, :1], bins=4) == pytest.approx(
        (0.1 + 0.4 + 0.2) / 5
    )
    assert math.isnan(expected_calibration_error(probabilities, torch.full_like(labels, nan)))


def test_errors_of_labels_do_not_cancel() -> None:
    probabilities, labels = torch.full((10, 2), 0.5), torch.tensor([[0.0, 1.0]]).repeat(10, 1)
    assert expected_calibration_error(probabilities, labels) == 0.5


def test_calibration_error_is_small_if_calibrated_and_falls_by_fitting() -> None:
    logits, labels = drawn(20_000, 0.4)
    assert expected_calibration_error((0.4 * logits).sigmoid(), labels) < 0.015
    before = expected_calibration_error(logits.sigmoid(), labels)
    after = expected_calibration_error(
        (temperature_scale(logits[:10_000], labels[:10_000]) * logits).sigmoid(), labels
    )
    assert before > 0.1
    assert after < 0.02


def test_brier_score_by_hand() -> None:
    labels = torch.tensor([[1.0, math.nan], [0.0, 0.0]])
    assert brier_score(torch.tensor([[0.8, 0.3], [0.4, 0.1]]), labels) == pytest.approx(
        (0.04 + 0.16 + 0.01) / 3
    )
    assert math.isnan(brier_score(torch.zeros(1, 1), torch.full((1, 1), math.nan)))


def test_what_does_not_fit_is_named() -> None:
    for measure in (temperature_scale, expected_calibration_error, brier_score):
        with pytest.raises(InvalidInputError, match=r"got values \(3, 1\) and labels \(3, 2\)"):
            measure(torch.zeros(3, 1), torch.zeros(3, 2))
    with pytest.raises(InvalidInputError, match="not finite"):
        temperature_scale(torch.tensor([[math.inf], [0.0]]), torch.tensor([[1.0], [0.0]]))
