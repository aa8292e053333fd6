import numpy as np
import pytest
import torch
from pydantic import ValidationError

from models.errors import InvalidInputError
from models.experts.combination import ForestInfo, combine, expert_choice, mean_outputs
from tests.forests import random_rows, random_symmetric

INFO = ForestInfo(default="both", inputs=("ecfp4",), library="none", weight=0.25)
FOREST, ROWS = random_symmetric(2), random_rows(5)
OWN = torch.linspace(-2, 2, 10).reshape(5, 2)


def test_both_is_the_weighted_mean_of_logits_with_a_temperature() -> None:
    trees = torch.from_numpy(FOREST.outputs(ROWS))
    opinions = combine(OWN, ROWS, FOREST, INFO, "both", "multilabel")
    scale, both_scale = (
        torch.from_numpy(values).float() for values in (FOREST.scale, FOREST.both_scale)
    )
    expected = (both_scale * (0.75 * OWN + 0.25 * trees)).sigmoid()
    torch.testing.assert_close(opinions.values, expected)
    torch.testing.assert_close(opinions.experts["own"], OWN.sigmoid())
    torch.testing.assert_close(opinions.experts["forest"], (scale * trees).sigmoid())
    assert list(opinions.experts) == ["own", "forest"]


def test_the_forest_alone() -> None:
    opinions = combine(OWN, ROWS, FOREST, INFO, "forest", "regression")
    expected = torch.from_numpy(FOREST.scale).float() * torch.from_numpy(FOREST.outputs(ROWS))
    torch.testing.assert_close(opinions.values, expected)
    assert list(opinions.experts) == ["forest"]


def test_the_mean_of_values_is_that_of_standardised_values() -> None:
    own, trees = torch.tensor([[3.0]]), torch.tensor([[7.0]])
    mean, deviation = 5.0, 2.0
    standardised = mean_outputs((own - mean) / deviation, (trees - mean) / deviation, 0.5)
    torch.testing.assert_close(
        standardised * deviation + mean, mean_outputs(own, trees, 0.5), atol=1e-6, rtol=0
    )


def test_weights_sum_to_one() -> None:
    assert INFO.weights("both") == {"own": 0.75, "forest": 0.25}
    assert (INFO.weights("own"), INFO.weights("forest")) == ({"own": 1.0}, {"forest": 1.0})


@pytest.mark.parametrize(
    ("names", "choice"),
    [
        (["own"], "own"),
        (["forest"], "forest"),
        (["own", "forest"], "both"),
        (["forest", "own"], "both"),
    ],
)
def test_a_list_of_experts_is_a_choice(names: list[str], choice: str) -> None:
    assert expert_choice(names) == choice


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["forst"], "got unknown expert 'forst', expected own or forest, did you mean 'forest'?"),
        (["own", "own"], "each once"),
        ([], "got experts \\[\\], expected some of own, forest"),
    ],
)
def test_other_lists_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message.replace("?", "\\?")):
        expert_choice(names)


@pytest.mark.parametrize(
    "changes",
    [{"inputs": ()}, {"inputs": ("maccs",)}, {"inputs": ("ecfp4", "ecfp4")}, {"weight": 1}],
)
def test_descriptions_are_checked(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ForestInfo.model_validate(INFO.model_dump() | changes)


def test_outputs_stay_float32() -> None:
    opinions = combine(OWN, ROWS, FOREST, INFO, "both", "multilabel")
    assert opinions.values.dtype == torch.float32
    assert np.isfinite(opinions.values.numpy()).all()
