"""The table of mergers that use no data: what it shows was chosen on validation data, and what the
page shows was measured."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import data_free
from merging.data.files import read_json
from merging.run.run import Run
from tests.pages import ROOT, page

RESULTS = sorted((ROOT / "results").glob("*/data_free.json"))


def scores(valid: float, test: float) -> dict[str, Any]:
    """What `measure` has of a row."""
    return {"valid_average": valid, "average": test, "roc_auc": {"a": test}, "recovery": 0.5}


def test_the_options_shown_are_those_that_validation_data_prefer() -> None:
    found = {
        "finetuned": scores(0.9, 0.9),
        "iso_c, scaling 0.1": scores(0.5, 0.8),
        "residual, rank 10": scores(0.6, 0.6),
        "iso_c, scaling 0.3": scores(0.7, 0.6),
        "residual, rank 30": scores(0.8, 0.7),
    }
    assert data_free.chosen(found) == [
        "finetuned",
        "iso_c, scaling 0.3",
        "residual, rank 10",
        "residual, rank 30",
    ]
    lines = data_free.table(found).splitlines()
    assert lines[0] == "| merger | ROC-AUC | recovery |"
    assert lines[3] == "| iso_c, scaling 0.3 | 0.600 | 0.50 |"


@pytest.mark.parametrize("measure", [data_free.measure, data_free.measure_samples])
def test_a_seed_is_measured(
    pico_run: Run, monkeypatch: pytest.MonkeyPatch, measure: Callable[[Run], dict[str, Any]]
) -> None:
    rows = ("weight_average", "residual, rank 10", "iso_c, scaling 0.3", "wudi, closed form")
    monkeypatch.setattr(data_free, "ROWS", {name: data_free.ROWS[name] for name in rows})
    found = measure(pico_run)
    assert list(found) == ["finetuned", *rows]
    metric = "roc_auc" if measure is data_free.measure else "concordance"
    assert all(set(row[metric]) == set(pico_run.tasks) for row in found.values())
    if found["finetuned"]["average"] > found["weight_average"]["average"]:
        assert found["weight_average"]["recovery"] == 0
        assert found["finetuned"]["recovery"] == 1


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_the_page_shows_what_was_measured(path: Path) -> None:
    for found in read_json(path)["seeds"].values():
        if "emr" in found:  # the first file has residuals alone
            assert data_free.table(found) in page("which-method.md").read_text()
