"""The table of the page: order, filters, keys, and what leaves it."""

import csv
import io
import json
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.service.page.conftest import Watched, cells_of, done, names_of, predict

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request

pytestmark = [pytest.mark.browser, pytest.mark.slow]
HOSTILE = "<img src=x onerror=alert(1)>"
TABLE = f"""name,smiles,dose,note
ethanol,CCO,10,=cmd()
{HOSTILE},CCN,9,+1+1
broken,C1CC,2,-3.5
propane,CCC,100,"@a, ""b"" c"
"""


def _downloaded(page: "Page", button: str) -> str:
    with page.expect_download() as downloading:
        page.get_by_text("Download").click()
        page.locator(f"#{button}").click()
    return Path(downloading.value.path()).read_text()


def test_cells_that_look_like_code_are_text(watched: Watched) -> None:
    page = watched.page
    predict(page, TABLE)
    assert names_of(page) == ["ethanol", HOSTILE, "broken", "propane"]
    assert cells_of(page, 4) == ["=cmd()", "+1+1", "-3.5", '@a, "b" c']
    assert page.locator("img[src='x']").count() == 0


def test_downloads_have_every_column_and_row_and_no_formula(watched: Watched) -> None:
    page = watched.page
    predict(page, TABLE)
    header, *rows = csv.reader(io.StringIO(_downloaded(page, "download-csv")))
    assert header[:6] == ["name", "smiles", "dose", "note", "gmerging_smiles", "gmerging_error"]
    assert header[6:] == ["bbbp.p_np", "clintox.FDA_APPROVED", "clintox.CT_TOX"] + [
        f"tox21.{label}" for label in ("NR-AR", "NR-ER", "SR-p53")
    ]
    assert [row[3] for row in rows] == ["'=cmd()", "'+1+1", "-3.5", '\'@a, "b" c']
    assert [row[4] for row in rows] == ["CCO", "CCN", "", "CCC"]
    assert rows[2][5].startswith("smiles_syntax: ")
    assert rows[2][6:] == [""] * 6
    assert all(0 <= float(value) <= 1 for row in (rows[0], rows[1], rows[3]) for value in row[6:])
    items = [json.loads(line) for line in _downloaded(page, "download-ndjson").splitlines()]
    assert [item["row"]["note"] for item in items] == ["=cmd()", "+1+1", "-3.5", '@a, "b" c']
    assert items[2]["error"]["code"] == "smiles_syntax"
    assert items[0]["tasks"]["bbbp"] == {"p_np": float(rows[0][6])}


def test_rows_are_sorted_and_errors_come_last(watched: Watched) -> None:
    page = watched.page
    predict(page, TABLE + "twin,OCC,10,\n")
    page.locator("[data-sort='upload:dose']").click()
    assert cells_of(page, 3) == ["2", "9", "10", "10", "100"]
    assert names_of(page)[2:4] == ["ethanol", "twin"]  # alike, and in the order of the upload
    page.locator("[data-sort='upload:dose']").click()
    assert names_of(page)[:3] == ["propane", "ethanol", "twin"]
    page.locator("[data-sort='upload:dose']").click()
    assert names_of(page)[0] == "ethanol"
    for is_up, direction in ((True, "ascending"), (False, "descending")):
        page.locator("[data-sort='bbbp.p_np']").click()
        assert page.locator(f"th[aria-sort={direction}]").count() == 1
        shown = page.locator("td.label[aria-colindex='5'] .value").all_inner_texts()
        values = [float(text) for text in shown]
        assert values == sorted(values, reverse=not is_up)
        assert names_of(page)[-1] == "broken"


def test_rows_are_searched_and_filtered(watched: Watched) -> None:
    page = watched.page
    predict(page, TABLE)
    page.locator("#search").fill("ONERROR")
    page.get_by_text("1 shown").wait_for()
    assert names_of(page) == [HOSTILE]
    page.locator("#search").fill("")
    page.get_by_text("1 shown").wait_for(state="detached")
    page.locator("#add-filter").click()
    page.locator(".range select").select_option(label="dose")
    page.locator(".range input").first.fill("9.5")
    page.get_by_text("2 shown").wait_for()
    assert names_of(page) == ["ethanol", "propane"]
    page.locator(".range input").last.fill("50")
    page.get_by_text("1 shown").wait_for()
    assert names_of(page) == ["ethanol"]
    _, *rows = csv.reader(io.StringIO(_downloaded(page, "download-shown")))
    assert [row[0] for row in rows] == ["ethanol"]
    page.locator(".range button").click()
    page.get_by_text("1 shown").wait_for(state="detached")
    assert len(names_of(page)) == 4


def test_properties_are_chosen_and_only_what_is_missing_is_asked_for(watched: Watched) -> None:
    page = watched.page
    asked: list[list[str]] = []

    def note(request: "Request") -> None:
        if request.url.endswith("/predict"):
            asked.append(json.loads(request.post_data or "")["tasks"])

    page.on("request", note)
    page.locator("#properties").click()
    page.get_by_role("button", name="None").click()
    assert page.get_by_role("button", name="Use these").is_disabled()
    page.locator("#choice-search").fill("p_np")
    page.locator("dialog .one input").check()
    page.get_by_role("button", name="Use these").click()
    predict(page, "CCO\nCCN")
    assert asked == [["bbbp"]]
    assert page.locator("th.label").count() == 1
    page.locator("#properties").click()
    page.locator(".task summary").filter(has_text="tox21").click()
    page.locator(".inside .one input").nth(1).check()
    page.get_by_role("button", name="Use these").click()
    page.locator("td.label[aria-colindex='4'] .value").nth(1).wait_for()
    assert asked == [["bbbp"], ["tox21"]]
    assert "2 of 6 properties" in page.locator("#properties").inner_text()


def test_a_link_reproduces_the_view(watched: Watched, browser: "Browser") -> None:
    page = watched.page
    predict(page, "CCO ethanol\nCCC propane\nCCCC butane")
    page.locator("#pictures").click()
    page.locator("[data-sort='bbbp.p_np']").click()
    page.locator("#search").fill("an")
    page.locator("#add-filter").click()
    page.locator(".range input").first.fill("0.01")
    page.wait_for_url("**filter=0.01*")
    names = names_of(page)
    context = browser.new_context()
    other = Watched(context.new_page(), watched.url)
    other.page.goto(page.url)
    done(other.page)
    assert names_of(other.page) == names
    assert other.page.locator("#pictures").get_attribute("aria-pressed") == "false"
    assert other.page.locator("#search").input_value() == "an"
    assert other.page.locator(".range input").first.input_value() == "0.01"
    context.close()
    assert (other.complaints, other.foreign) == ([], [])


def test_the_command_that_is_copied_asks_the_same(watched: Watched) -> None:
    page = watched.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    predict(page, "CCO it's\nCCC")
    page.get_by_text("Copy").click()
    page.locator("#copy-curl").click()
    page.get_by_text("The command is copied").wait_for()
    command = page.evaluate("navigator.clipboard.readText()")
    answer = subprocess.run(shlex.split(command), capture_output=True, check=True)
    items = json.loads(answer.stdout)["predictions"]
    assert [item["smiles"] for item in items] == ["CCO", "CCC"]
    shown = page.locator("td.label[aria-colindex='3'] .value").all_inner_texts()
    assert [f"{item['tasks']['bbbp']['p_np']:.2f}" for item in items] == shown


def test_everything_can_be_done_with_the_keyboard(watched: Watched) -> None:
    page = watched.page
    page.locator("#model").wait_for()
    keys = page.keyboard
    page.locator("#molecules-text").focus()
    keys.type("CCO ethanol\nCCC propane")
    keys.press("Control+Enter")
    done(page)
    focused = "document.activeElement"
    for _ in range(40):  # to the table, whatever lies between
        keys.press("Tab")
        if page.evaluate(f"{focused}.closest('tbody') !== null"):
            break
    keys.press("ArrowDown")
    assert "propane" in page.evaluate(f"{focused}.innerText")
    keys.press("End")
    assert page.evaluate(f"{focused}.getAttribute('aria-colindex')") == "8"
    keys.press("Home")
    keys.press("Space")
    assert page.locator("tr[data-place='1'] input").is_checked()
    keys.press("Enter")
    page.locator("#panel").wait_for()
    keys.press("Escape")
    page.locator("#panel").wait_for(state="hidden")
    assert "propane" in page.evaluate(f"{focused}.innerText")
    keys.press("ArrowUp")
    keys.press("ArrowUp")
    assert page.evaluate(f"{focused}.dataset.sort") == "name"
    keys.press("Enter")
    keys.press("Enter")
    assert names_of(page) == ["propane", "ethanol"]
    assert page.evaluate(f"{focused}.dataset.sort") == "name"
