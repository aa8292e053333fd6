"""Linear probes: heads that are fitted, not trained."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from merging.targets.losses import LabelScale
from merging.targets.probe import INVERSE_PENALTY, PENALTY, fit_probe
from models.task import TaskInfo


def features(rows: int = 200) -> Tensor:
    torch.manual_seed(3)
    return torch.randn(rows, 5) * torch.tensor([1.0, 10.0, 0.1, 2.0, 5.0]) + 3


def outputs(head: dict[str, Tensor], x: Tensor) -> Tensor:
    return x @ head["weight"].T + head["bias"]


def test_labels_are_fitted_by_logistic_regressions_on_standardised_features() -> None:
    x = features()
    labels = torch.stack([(x[:, 1] > 3).float(), (x[:, 2] > 3).float()], 1)
    labels[:150, 1] = torch.nan
    head = fit_probe(x, labels, "multilabel", None)
    standard = StandardScaler().fit_transform(x.double().numpy())
    for k, known in enumerate((slice(None), slice(150, None))):
        model = LogisticRegression(C=INVERSE_PENALTY, max_iter=500)
        model.fit(standard[known], labels[known, k].numpy())
        expected = torch.from_numpy(model.decision_function(standard)).float()
        torch.testing.assert_close(outputs(head, x)[:, k], expected, atol=1e-4, rtol=1e-4)


def test_a_regression_is_fitted_in_standard_deviations() -> None:
    x = features()
    values = torch.stack([1000 + 50 * x[:, 0], x[:, 3]], 1)
    scale = LabelScale.fit(TaskInfo(labels=("a", "b"), target="regression"), [values])
    head = fit_probe(x, values, "regression", scale)
    standard = StandardScaler().fit_transform(x.double().numpy())
    wanted = scale.standardise(values).double().numpy()
    expected = Ridge(alpha=PENALTY).fit(standard, wanted).predict(standard)
    torch.testing.assert_close(
        outputs(head, x), torch.from_numpy(expected).float(), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("classes", [2, 3])
def test_classes_have_a_row_each(classes: int) -> None:
    x = features(3000)
    labels = (x[:, 1].argsort().argsort() * classes // len(x)).long()
    labels[:20] = -1
    head = fit_probe(x, labels, "multiclass", None)
    assert head["weight"].shape == (classes, 5)
    found = outputs(head, x)[20:].argmax(1)
    assert float((found == labels[20:]).float().mean()) > 0.75


def test_a_label_with_one_value_is_constant() -> None:
    x = features(10)
    labels = torch.full((10, 3), torch.nan)
    labels[:4, 0], labels[:, 1] = 1.0, 0.0
    head = fit_probe(x, labels, "multilabel", None)
    assert not bool(head["weight"].any())
    expected = [math.log(4.5 / 0.5), math.log(0.5 / 10.5), 0.0]
    assert np.allclose(head["bias"].numpy(), expected)
    values = fit_probe(x, torch.tensor([[7.0, torch.nan]] * 10), "regression", None)
    assert values["bias"].tolist() == [7.0, 0.0]


def test_a_dead_unit_has_no_weight() -> None:
    """A column of 1e-43, as dead units of a pre-trained network have, would get weights of 1e43."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator)
    x[:, 1] = (x[:, 0] > 0) * 3e-43
    classes = (x[:, 0] > 0).long()
    head = fit_probe(x, classes, "multiclass", None)
    assert bool(head["weight"].isfinite().all())
    assert not bool(head["weight"][:, 1].any())
    without = fit_probe(x[:, [0, 2]], classes, "multiclass", None)
    torch.testing.assert_close(head["weight"][:, [0, 2]], without["weight"])
    torch.testing.assert_close(head["bias"], without["bias"])
