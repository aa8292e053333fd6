"""What a screening asks."""

import math

import numpy as np
import pytest
from pydantic import ValidationError

from models.errors import InvalidInputError
from models.task import TaskInfo
from service.shards.request import Limits, ScreenRequest, Top, chosen_labels, condition

LIMITS = Limits(max_atoms=500, max_smiles_length=2000, max_batch_cost=2500)
TASKS = {
    "herg": TaskInfo(labels=("blocker",)),
    "tox21": TaskInfo(labels=("NR-AR", "NR-ER")),
    "sol": TaskInfo(labels=("log",)),
}


@pytest.mark.parametrize(
    ("text", "label", "kept"),
    [
        ("herg.blocker<0.3", "herg.blocker", [True, False, False]),
        (" herg.blocker <= 0.3 ", "herg.blocker", [True, True, False]),
        ("tox21.NR-AR>.3", "tox21.NR-AR", [False, False, True]),
        ("a.b >= 3e-1", "a.b", [False, True, True]),
        ("a.b<c>0.3", "a.b<c", [False, False, True]),
        ("a.b>-1", "a.b", [True, True, True]),
    ],
)
def test_a_condition_has_a_label_a_comparison_and_a_number(
    text: str, label: str, kept: list[bool]
) -> None:
    found = condition(text)
    assert found.label == label
    assert found.holds(np.array([0.1, 0.3, 0.5]), found.value).tolist() == kept


@pytest.mark.parametrize("text", ["", "herg", "<3", "herg.blocker<", "herg.blocker<x", "a==3"])
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"expected one such as 'herg\.blocker<0\.3'"):
        condition(text)


def test_a_condition_that_nothing_fulfils_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="nothing fulfils"):
        condition("a.b<nan")
    assert condition("a.b<inf").value == math.inf


@pytest.mark.parametrize(
    ("tasks", "labels", "used", "expected"),
    [
        (None, [], [], "herg.blocker tox21.NR-AR tox21.NR-ER sol.log"),
        (None, [], ["herg.blocker"], "herg.blocker tox21.NR-AR tox21.NR-ER sol.log"),
        (["tox21"], [], [], "tox21.NR-AR tox21.NR-ER"),
        (["sol"], [], ["tox21.NR-ER"], "tox21.NR-ER sol.log"),
        (None, ["tox21.NR-ER"], [], "tox21.NR-ER"),
        (["herg"], ["tox21.NR-ER"], [], "herg.blocker tox21.NR-ER"),
    ],
)
def test_labels_are_those_of_the_tasks_named_ones_and_those_of_conditions(
    tasks: list[str] | None, labels: list[str], used: list[str], expected: str
) -> None:
    chosen_tasks, chosen = chosen_labels(TASKS, tasks, labels, used)
    assert " ".join(chosen) == expected
    assert chosen_tasks == tuple(dict.fromkeys(label.split(".")[0] for label in chosen))


def test_what_the_model_does_not_have_is_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidInputError, match=r"unknown label 'tox21.NR-AT'.*NR-A"):
        chosen_labels(TASKS, None, ["tox21.NR-AT"], [])
    with pytest.raises(InvalidInputError, match="unknown task 'tox'"):
        chosen_labels(TASKS, ["tox"], [], [])
    with pytest.raises(InvalidInputError, match="no task and no label"):
        chosen_labels(TASKS, [], [], [])


def test_a_request_survives_json_and_keeps_its_conditions_to_its_labels() -> None:
    top = Top(count=3, label="herg.blocker", lowest=True)
    request = ScreenRequest(
        tasks=("herg",), labels=("herg.blocker",), keep=("herg.blocker<.5",), top=top, limits=LIMITS
    )
    assert ScreenRequest.model_validate_json(request.model_dump_json()) == request
    assert not request.keeps_all
    assert request.model_copy(update={"keep": (), "top": None}).keeps_all
    with pytest.raises(ValidationError, match="expected one of the labels"):
        ScreenRequest(tasks=("a",), labels=("a.b",), keep=("a.c<1",), limits=LIMITS)
