import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from models.errors import InvalidInputError
from models.experts.combination import (
    ExpertChoice,
    ForestInfo,
    ForestMember,
    Opinions,
    combine,
    expert_choice,
    mean_outputs,
)
from models.task import OutputKind
from tests.forests import random_rows, random_symmetric

INFO = ForestInfo(default="both", inputs=("ecfp4",), library="none", weight=0.25)
FOREST, ROWS = random_symmetric(2), random_rows(5)
OWN = torch.linspace(-2, 2, 10).reshape(5, 2)


def opinions_of(choice: ExpertChoice, target: OutputKind = "multilabel") -> Opinions:
    member = ForestMember(FOREST, INFO, choice, target)
    return combine({"task": OWN}, ROWS, {"task": member})["task"]


def assert_close(found: NDArray[np.float32], expected: Tensor) -> None:
    torch.testing.assert_close(torch.from_numpy(found), expected)


def test_both_is_the_weighted_mean_of_logits_with_a_temperature() -> None:
    trees = torch.from_numpy(FOREST.outputs(ROWS))
    opinions = opinions_of("both")
    scale, both_scale = (
        torch.from_numpy(values).float() for values in (FOREST.scale, FOREST.both_scale)
    )
    expected = (both_scale * (0.75 * OWN + 0.25 * trees)).sigmoid()
    assert_close(opinions.values, expected)
    assert_close(opinions.experts["own"], OWN.sigmoid())
    assert_close(opinions.experts["forest"], (scale * trees).sigmoid())
    assert list(opinions.experts) == ["own", "forest"]


def test_the_forest_alone() -> None:
    opinions = opinions_of("forest", "regression")
    expected = torch.from_numpy(FOREST.scale).float() * torch.from_numpy(FOREST.outputs(ROWS))
    assert_close(opinions.values, expected)
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
    opinions = opinions_of("both")
    assert opinions.values.dtype == np.float32
    assert np.isfinite(opinions.values).all()


def test_tasks_of_several_kinds_are_combined_each_as_by_itself() -> None:
    """Side by side in another order of kinds, widths and choices."""
    other = random_symmetric(3)
    own = {"a": OWN, "b": torch.linspace(-1, 1, 15).reshape(5, 3), "c": 2 * OWN, "d": -OWN}
    members = {
        "a": ForestMember(FOREST, INFO, "both", "multilabel"),
        "b": ForestMember(other, INFO, "both", "log10_regression"),
        "c": ForestMember(FOREST, INFO, "forest", "multilabel"),
        "d": ForestMember(FOREST, INFO, "both", "regression"),
    }
    found = combine(own, ROWS, members)
    assert list(found) == list(members)
    for task, member in members.items():
        alone = combine({task: own[task]}, ROWS, {task: member})[task]
        np.testing.assert_allclose(found[task].values, alone.values, rtol=1e-6)
        assert list(found[task].experts) == list(alone.experts)
        for name, values in alone.experts.items():
            np.testing.assert_allclose(found[task].experts[name], values, rtol=1e-6)
