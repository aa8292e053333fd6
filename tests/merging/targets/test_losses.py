"""Losses by target against a calculation by hand, and the scale of a regression's labels."""

import math

import pytest
import torch
from torch import Tensor, nn

from merging.targets.losses import LabelScale, compute_loss
from models.errors import InvalidInputError
from models.task import LabelTarget, TaskInfo
from tests.conftest import assert_law

NAN = math.nan


def info(target: LabelTarget, labels: int = 2) -> TaskInfo:
    return TaskInfo(labels=tuple(f"y{k}" for k in range(labels)), target=target)


def test_independent_labels_by_hand() -> None:
    logits, labels = torch.tensor([[0.0, 3.0], [1.0, -2.0]]), torch.tensor([[1, NAN], [0, NAN]])
    expected = (math.log1p(math.exp(-0.0)) + math.log1p(math.exp(1.0))) / 2
    assert float(compute_loss(logits, labels, info("multilabel"))) == pytest.approx(expected)


def test_classes_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    value = compute_loss(logits, torch.tensor([0, -1]), info("multiclass"))
    assert float(value) == pytest.approx(math.log1p(math.exp(-2.0)))


def test_numbers_by_hand() -> None:
    output, labels = torch.tensor([[1.0, 2.0], [4.0, 0.0]]), torch.tensor([[3, NAN], [NAN, 1.0]])
    assert float(compute_loss(output, labels, info("regression"))) == pytest.approx((4 + 1) / 2)


@pytest.mark.parametrize(
    ("target", "labels"),
    [
        ("multiclass", torch.tensor([-1, -1])),
        ("regression", torch.full((2, 2), NAN)),
        ("multilabel", torch.full((2, 2), NAN)),
    ],
)
def test_where_nothing_is_known_nothing_is_learnt(target: LabelTarget, labels: Tensor) -> None:
    output = torch.tensor([[2.0, 0.0], [0.0, 0.0]], requires_grad=True)
    value = compute_loss(output, labels, info(target))
    value.backward()
    assert float(value.detach()) == 0
    assert output.grad is not None
    assert not output.grad.any()


@pytest.mark.parametrize("target", ["multilabel", "regression"])
def test_a_missing_label_counts_as_absent(target: LabelTarget) -> None:
    torch.manual_seed(0)
    output, labels = torch.randn(5, 2).double(), torch.randint(2, (5, 2)).double()
    labels[3:] = NAN
    whole, few = (
        compute_loss(output, labels, info(target)),
        compute_loss(output[:3], labels[:3], info(target)),
    )
    assert_law(whole, few)


def test_energies_and_forces_have_a_loss_of_their_own() -> None:
    field = TaskInfo(labels=("energy",), target="energy_and_forces")
    with pytest.raises(InvalidInputError, match="got 'energy_and_forces', expected labels"):
        compute_loss(torch.zeros(1, 1), torch.zeros(1, 1), field)


def test_scale_by_hand() -> None:
    labels = torch.tensor([[1.0, 5.0, NAN], [3.0, 5.0, NAN], [NAN, 5.0, NAN]])
    scale = LabelScale.fit(info("regression", 3), [labels])
    assert scale.mean.tolist() == [2, 5, 0]
    assert scale.deviation.tolist() == [1, 1, 1]  # a constant label is not divided by zero
    standardised = scale.standardise(labels)
    assert standardised[:, :2].tolist()[:2] == [[-1, 0], [1, 0]]
    assert bool(standardised[:, 2].isnan().all())


def test_labels_and_classes_are_not_scaled() -> None:
    labels, classes = torch.tensor([[0.0, 1.0], [NAN, 1.0]]), torch.tensor([2, -1, 0])
    assert LabelScale.fit(info("multilabel"), [labels]).standardise(labels)[:, 1].tolist() == [1, 1]
    assert LabelScale.fit(info("multiclass", 3), [classes]).standardise(classes) is classes
    head = {"weight": torch.randn(2, 3), "bias": torch.randn(2)}
    folded = LabelScale.fit(info("multilabel"), [labels]).fold(head)
    assert all(torch.equal(folded[name], value) for name, value in head.items())


def test_a_folded_head_answers_in_the_units_of_the_labels() -> None:
    """What it answers, standardised, is what the head answered before."""
    torch.manual_seed(0)
    labels = 40 * torch.randn(50, 2).double() + torch.tensor([300.0, -7.0]).double()
    scale = LabelScale.fit(info("regression"), [labels])
    head, embeddings = nn.Linear(4, 2).double(), torch.randn(50, 4).double()
    folded = nn.Linear(4, 2).double()
    folded.load_state_dict(scale.fold(head.state_dict()))
    with torch.no_grad():
        assert_law(scale.standardise(folded(embeddings)), head(embeddings), 1e-9)


def test_training_standardised_and_folding_is_training_in_the_units() -> None:
    """Gradient descent on standardised labels is that on labels in their units, from the folded
    start and with the squared errors in standard deviations."""
    torch.manual_seed(1)
    x, labels = torch.randn(30, 3).double(), 5 * torch.randn(30, 2).double() + 90
    labels[::4, 1] = NAN
    scale = LabelScale.fit(info("regression"), [labels])
    plain = nn.Linear(3, 2).double()
    units = nn.Linear(3, 2).double()
    units.load_state_dict(scale.fold(plain.state_dict()))
    step = torch.optim.SGD(plain.parameters(), 0.1)
    deviation = scale.deviation.double()
    for _ in range(20):
        step.zero_grad()
        compute_loss(plain(x), scale.standardise(labels), info("regression")).backward()
        step.step()
        errors = scale.standardise(units(x)) - scale.standardise(labels)
        known = ~labels.isnan()
        value = torch.where(known, errors.nan_to_num().square(), 0.0).sum() / known.sum()
        gradients = torch.autograd.grad(value, list(units.parameters()))
        with torch.no_grad():  # in the coordinates of the standardised head
            units.weight -= 0.1 * deviation[:, None] ** 2 * gradients[0]
            units.bias -= 0.1 * deviation**2 * gradients[1]
    folded = scale.fold(plain.state_dict())
    assert_law(units.weight.detach(), folded["weight"], 1e-8)
    assert_law(units.bias.detach(), folded["bias"], 1e-8)


def test_smooth_l1_by_hand() -> None:
    output, labels = torch.tensor([[1.0, 2.0], [4.0, 0.0]]), torch.tensor([[3, NAN], [NAN, 0.5]])
    value = compute_loss(output, labels, info("regression"), "smooth_l1")
    assert float(value) == pytest.approx((1.5 + 0.125) / 2)
