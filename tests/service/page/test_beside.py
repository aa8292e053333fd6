"""What the table has by other requests than predictions: substructures, alerts, SDF."""

import csv
import io
import re
from pathlib import Path

import pytest

from tests.service.page.conftest import Watched, names_of, predict

pytestmark = [pytest.mark.browser, pytest.mark.slow]
MOLECULES = "CCO ethanol\nCCC propane\nO=C1C=CC(=O)C=C1 quinone\nC1CC broken\n"


def test_a_substructure_filters_rows_and_a_wrong_one_is_explained(watched: Watched) -> None:
    page = watched.page
    predict(page, MOLECULES)
    page.locator("#smarts").fill("[#8]")
    page.get_by_text("2 shown").wait_for()
    assert names_of(page) == ["ethanol", "quinone"]
    page.wait_for_url("**smarts=%5B%238%5D*")
    page.locator("#smarts").fill("C(")
    page.locator("#smarts-error:not(:empty)").wait_for()
    assert page.locator("#smarts").get_attribute("aria-invalid") == "true"
    assert all("422" in complaint for complaint in watched.complaints)
    watched.complaints.clear()
    page.locator("#smarts").fill("")
    page.locator("#smarts-error:empty").wait_for(state="attached")
    assert len(names_of(page)) == 4


def test_molecules_that_come_later_are_searched_too(watched: Watched) -> None:
    page = watched.page
    predict(page, "CCO ethanol\nCCC propane")
    page.locator("#smarts").fill("O")
    page.get_by_text("1 shown").wait_for()
    predict(page, MOLECULES)
    page.get_by_text("2 shown").wait_for()
    page.reload()
    page.get_by_text("2 shown").wait_for()


def test_an_sdf_has_every_row_and_its_columns(watched: Watched) -> None:
    page = watched.page
    predict(page, "name,smiles,dose\nethanol,CCO,<5\nbroken,C1CC,7\n")
    page.get_by_text("Download").click()
    with page.expect_download() as downloading:
        page.locator("#download-sdf").click()
    records = Path(downloading.value.path()).read_text().split("$$$$\n")
    assert len(records) == 3
    assert "M  END" in records[0]
    for record, dose in zip(records, ("<5", "7"), strict=False):
        assert re.search(rf"> +<dose>.*\n{dose}\n", record)
    assert re.search(r"> +<bbbp\.p_np>.*\n0\.\d+\n", records[0])
    assert "bbbp.p_np" not in records[1] or "> <gmerging_error>" in records[1]


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


def test_what_is_asked_for_later_is_not_taken_for_known(watched: Watched) -> None:
    """A button that is pressed while an answer is on its way asks again: its answer is not "none"
    because the earlier request did not ask."""
    known = watched.page.evaluate(
        """async () => {
          const { explainRows } = await import("./page/table/beside.js");
          const { loadCatalogue } = await import("./page/catalogue.js");
          const catalogue = await loadCatalogue();
          const labels = [catalogue.labels.values().next().value];
          const results = {
            isAnswered: () => true,
            smiles: ["O=C1C=CC(=O)C=C1"],
            percentiles: new Map(),
            alerts: new Map(),
          };
          const wanted = new Set(["alerts"]);
          const options = { limits: catalogue.model.limits };
          const asking = explainRows(results, [0], labels, wanted, options);
          wanted.add("drugs");
          await asking;
          return { alerts: results.alerts.get(0).length, percentiles: results.percentiles.size };
        }"""
    )
    assert known["alerts"] > 0
    assert known["percentiles"] == 0
