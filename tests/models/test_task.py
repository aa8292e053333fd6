"""What a task says of its answers."""

import pytest
from pydantic import ValidationError

from models.task import TaskInfo


def test_units_belong_to_labels_and_come_back() -> None:
    info = TaskInfo(labels=("logS", "mp"), target="regression", units=("log mol/L", ""))
    assert info.unit_of == {"logS": "log mol/L"}
    assert TaskInfo.model_validate_json(info.model_dump_json()) == info


def test_a_task_without_units_is_written_as_before_there_were_any() -> None:
    written = TaskInfo(labels=("p_np",), description="a barrier").model_dump()
    assert list(written) == ["labels", "description", "level", "target"]
    assert TaskInfo.model_validate({"labels": ["a"], "target": "regression"}).unit_of == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": "multilabel", "units": ["K"]}, "units: got some for target 'multilabel'"),
        ({"target": "regression", "units": ["K", "K"]}, "units: got 2 for 1 labels, expected one"),
        ({"target": "regression", "units": ["K\n"]}, "got unit 'K\\\\n', expected at most 64 prin"),
        ({"target": "regression", "units": [" K"]}, "no space around them"),
        ({"target": "regression", "units": ["K" * 65]}, "expected at most 64 printable characters"),
    ],
)
def test_units_that_do_not_fit_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TaskInfo.model_validate({"labels": ["a"], **fields})
