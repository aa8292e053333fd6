"""What the labels of a task mean, and how that is said."""

import pytest
from pydantic import ValidationError

from models.errors import InvalidInputError
from models.meaning import (
    Counts,
    Distribution,
    LabelMeaning,
    LabelScore,
    TaskMeaning,
    calibration_text,
    scores_text,
)
from models.task import TaskInfo

COUNTS = Counts(train=8, valid=1, test=1)
CLASS = LabelMeaning(
    name="blockade of a channel",
    measured="Whether a compound blocks the channel.",
    direction="bad",
    one="blocker",
    counts=COUNTS,
    positives=Counts(train=3, valid=1, test=0),
    scores=(LabelScore(metric="roc_auc", value=0.75, low=0.5, high=0.9),),
    calibration_error=0.0625,
)
NUMBER = LabelMeaning(
    name="energy",
    measured="The energy of a structure.",
    direction="neither",
    counts=COUNTS,
    distribution=Distribution(mean=-17.25, deviation=0.25, quartiles=(-17.5, -17.25, -17)),
    scores=(LabelScore(metric="mae", value=0.2, low=0.1, high=0.3, unit="K"),),
)


def meaning(*labels: LabelMeaning) -> TaskMeaning:
    return TaskMeaning(source="a paper", terms="CC0", counted="molecules", labels=labels)


def test_a_meaning_comes_back_and_is_absent_by_default() -> None:
    info = TaskInfo(labels=("blocker",), meaning=meaning(CLASS))
    assert TaskInfo.model_validate_json(info.model_dump_json()) == info
    assert list(TaskInfo(labels=("a",)).model_dump()) == [
        "labels",
        "description",
        "level",
        "target",
    ]
    written = info.model_dump()["meaning"]["labels"][0]
    assert "distribution" not in written
    assert "unit" not in written["scores"][0]


def test_a_label_is_said_in_words() -> None:
    info = TaskInfo(labels=("blocker",), meaning=meaning(CLASS))
    assert info.label_text("blocker").splitlines() == [
        "blocker: blockade of a channel",
        "  Whether a compound blocks the channel.",
        "  direction: high is bad; 1 = blocker",
        "  unit: probability",
        "  data: 10 molecules (8 train, 1 validation, 1 test); 40 % are 1",
        "  test score: ROC-AUC 0.750 (0.500 to 0.900)",
        "  calibration error: 0.062",
    ]
    numbers = TaskInfo(
        labels=("t",), target="regression", units=("K",), meaning=meaning(NUMBER)
    ).label_text("t")
    assert "  unit: K\n" in numbers
    assert "mean -17.250, standard deviation 0.25, quartiles -17.500, -17.250, -17.000 K" in numbers
    assert "mean absolute error 0.200 (0.100 to 0.300) K" in numbers
    assert "calibration error: none, it is a number" in numbers


def test_a_label_that_nobody_described_is_its_name_and_unit() -> None:
    info = TaskInfo(labels=("t", "u"), target="regression", units=("K", ""))
    assert (info.label_text("t"), info.label_text("u")) == ("t [K]", "u")
    forces = TaskInfo(labels=("energy",), target="energy_and_forces")
    assert forces.label_text("energy") == "energy [eV]"
    with pytest.raises(InvalidInputError, match="got label 'v', expected one of t, u"):
        info.label_text("v")


def test_why_there_is_no_score() -> None:
    of_one_class = CLASS.model_copy(update={"scores": (), "calibration_error": None})
    assert scores_text(of_one_class) == "not measured: all are of one class"
    assert calibration_text(of_one_class) == "not measured"
    untested = {"counts": Counts(train=8, valid=1, test=0)}
    assert "no test row has the label" in scores_text(of_one_class.model_copy(update=untested))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"direction": "up"}, "'good', 'bad' or 'neither'"),
        ({"name": ""}, "at least 1 character"),
        ({"measured": "two\nlines"}, "expected one line of text"),
        ({"positives": None}, "expected `positives` of a class label, or `distribution`"),
        ({"distribution": NUMBER.distribution}, "expected `positives` of a class label"),
        ({"unknown": 1}, "Extra inputs are not permitted"),
    ],
)
def test_meanings_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LabelMeaning.model_validate({**dict(CLASS), **changes})


def test_a_task_has_a_meaning_for_each_label() -> None:
    with pytest.raises(ValidationError, match="meaning: got 1 labels for 2, expected one for each"):
        TaskInfo(labels=("a", "b"), meaning=meaning(CLASS))
