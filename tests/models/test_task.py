"""What a task says of its answers."""

import math

import pytest
import torch
from pydantic import ValidationError

from models.task import TaskInfo, answers


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


def test_scale_and_metric_come_back_and_are_absent_by_default() -> None:
    info = TaskInfo(labels=("t",), target="regression", scale="log10", metric="spearman")
    assert TaskInfo.model_validate_json(info.model_dump_json()) == info
    assert (info.output_kind, info.main_metric) == ("log10_regression", "spearman")
    plain = TaskInfo(labels=("t",), target="regression")
    assert not {"scale", "metric"} & plain.model_dump().keys()
    assert (plain.output_kind, plain.main_metric) == ("regression", "mae")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": "log10"}, "scale: got 'log10' for target 'multilabel', expected a regression"),
        ({"metric": "mae"}, "metric: got 'mae' for target 'multilabel', expected roc_auc or auprc"),
        ({"target": "multiclass", "metric": "auprc"}, "'multiclass', expected accuracy"),
    ],
)
def test_scales_and_metrics_that_do_not_fit_are_refused(
    fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        TaskInfo.model_validate({"labels": ["a"], **fields})


def test_answers_of_logarithms_are_numbers_and_always_finite() -> None:
    logits = torch.tensor([[0.0, -2.0, 3.0], [1000.0, -1000.0, math.nan]])
    values = answers(logits, "log10_regression")
    torch.testing.assert_close(values[0], torch.tensor([1.0, 0.01, 1000.0]))
    assert values[1, :2].isfinite().all()
    assert (values[1, :2] > 0).all()
    assert values[1, 2].isnan()
    assert torch.equal(answers(logits[0], "regression"), logits[0])
