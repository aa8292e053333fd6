"""Substructures and structural alerts in the table."""

import csv
import io
from pathlib import Path

import pytest

from tests.service.page.conftest import Watched, cells_of, predict

pytestmark = [pytest.mark.browser, pytest.mark.slow]
MOLECULES = "CCO ethanol\nCCC propane\nO=C1C=CC(=O)C=C1 quinone\nC1CC broken\n"


def test_a_substructure_filters_rows_and_a_wrong_one_is_explained(watched: Watched) -> None:
    page = watched.page
    predict(page, MOLECULES)
    page.locator("#smarts").fill("[#8]")
    page.get_by_text("2 shown").wait_for()
    assert [text.split("\n")[0] for text in cells_of(page, 1)] == ["ethanol", "quinone"]
    page.wait_for_url("**smarts=%5B%238%5D*")
    page.locator("#smarts").fill("C(")
    page.locator("#smarts-error:not(:empty)").wait_for()
    assert page.locator("#smarts").get_attribute("aria-invalid") == "true"
    assert all("422" in complaint for complaint in watched.complaints)
    watched.complaints.clear()
    page.locator("#smarts").fill("")
    page.locator("#smarts-error:empty").wait_for(state="attached")
    assert len(cells_of(page, 1)) == 4


def test_molecules_that_come_later_are_searched_too(watched: Watched) -> None:
    page = watched.page
    predict(page, "CCO ethanol\nCCC propane")
    page.locator("#smarts").fill("O")
    page.get_by_text("1 shown").wait_for()
    predict(page, MOLECULES)
    page.get_by_text("2 shown").wait_for()
    page.reload()
    page.get_by_text("2 shown").wait_for()


def test_alerts_are_a_column_and_downloaded(watched: Watched) -> None:
    page = watched.page
    predict(page, MOLECULES)
    assert page.locator("#among-drugs").is_hidden()  # the small model has no drugs
    page.locator("#alerts").click()
    page.locator("td.alerts .alert").wait_for()
    shown = page.locator("td.alerts").all_inner_texts()
    assert shown[:2] == ["none", "none"]
    assert "quinone" in shown[2].lower()
    with page.expect_download() as downloading:
        page.get_by_text("Download").click()
        page.locator("#download-csv").click()
    table = Path(downloading.value.path()).read_text()
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [bool(row["gmerging_alerts"]) for row in rows] == [False, False, True, False]
