"""How molecules come into the page, and what it shows of them."""

import gzip
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.service.page.conftest import Watched, done, names_of, predict, smiles_of

if TYPE_CHECKING:
    from playwright.sync_api import FilePayload, Page, Route

pytestmark = [pytest.mark.browser, pytest.mark.slow]
DRUGS = "CC(=O)Oc1ccccc1C(=O)O aspirin\nCn1cnc2c1c(=O)n(C)c(=O)n2C caffeine\nCCO"
# A mol block of ethanol; its counts line has its columns at their places.
ETHANOL = """ethanol
  by hand

  3  2  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.0000 C   0  0
    1.2990    0.7500    0.0000 C   0  0
    2.5981   -0.0000    0.0000 O   0  0
  1  2  1  0
  2  3  1  0
M  END
"""


def _read(page: "Page", text: str) -> dict[str, Any]:
    """What `readText` makes of a pasted text."""
    code = """async (text) => {
      const { readText } = await import(new URL("page/input/reading.js", document.baseURI));
      const { columns, rows, molecule, name, kind, problems } = readText(text);
      return { columns, rows, molecule, name, kind, problems: [...problems] };
    }"""
    result: dict[str, Any] = page.evaluate(code, text)
    return result


def test_the_page_names_the_model_and_says_what_to_do(watched: Watched) -> None:
    page = watched.page
    page.locator("#model").wait_for()
    assert page.locator("#model").inner_text().startswith("pico ")
    assert "Paste SMILES" in page.locator("#composer").inner_text()
    assert page.locator("#predict").is_disabled()
    assert page.locator("#molecules").is_hidden()


def test_pasted_molecules_are_predicted_in_order_with_their_names(watched: Watched) -> None:
    page = watched.page
    predict(page, DRUGS + "\nno_molecule bad\nCCO ethanol")
    assert names_of(page) == ["aspirin", "caffeine", "#3", "bad", "ethanol"]
    assert "5 molecules · 1 could not be read" in page.locator("#summary").inner_text()
    assert "valid SMILES syntax" in page.locator(".grid .error").inner_text()
    first, again = (page.locator(f"tr[data-place='{k}'] .value").all_inner_texts() for k in (2, 4))
    assert first == again  # the same molecule twice has the same answers, and both rows
    assert len(first) == 6
    page.locator(".grid img").nth(3).wait_for()  # a picture for every molecule that was read


def test_what_is_pasted_is_recognised(watched: Watched) -> None:
    page = watched.page
    table = _read(page, "ID\tActivity\tStructure\nA1\t=1+1\tCCO\nA2\t7,5\tc1ccccc1\n")
    assert (table["columns"], table["molecule"], table["name"]) == (
        ["ID", "Activity", "Structure"],
        2,
        0,
    )
    no_header = _read(page, "CCO;ethanol\nCCN;ethylamine\n")
    assert no_header["columns"] == ["smiles", "name"]
    assert no_header["rows"] == [["CCO", "ethanol"], ["CCN", "ethylamine"]]
    lines = _read(page, "smiles name\nCCO ethyl alcohol, pure\nCCO |lp:1:2| with lone pairs\n")
    assert lines["rows"] == [["CCO", "ethyl alcohol, pure"], ["CCO |lp:1:2|", "with lone pairs"]]
    inchi = _read(page, "InChI=1S/C2H6O/c1-2-3/h3H,2H2,1H3\n")
    assert inchi["rows"] == [["InChI=1S/C2H6O/c1-2-3/h3H,2H2,1H3"]]
    sdf = _read(page, f"{ETHANOL}> <dose>\n5 mg\n\n$$$$\n{ETHANOL}$$$$\n")
    assert sdf["columns"] == ["molecule", "name", "dose"]
    assert [row[1:] for row in sdf["rows"]] == [["ethanol", "5 mg"], ["ethanol", None]]
    block = _read(page, ETHANOL)
    assert (block["kind"], len(block["rows"])) == ("sdf", 1)
    quoted = _read(page, 'smiles,note\nCCO,"a ""b"", c\nd"\nCCN,"open\nCCC,last\n')
    assert quoted["rows"] == [["CCO", 'a "b", c\nd'], ["CCN", '"open'], ["CCC", "last"]]
    assert [row for row, _ in quoted["problems"]] == [1]


def test_a_pasted_mol_block_is_predicted(watched: Watched) -> None:
    predict(watched.page, ETHANOL)
    assert (names_of(watched.page), smiles_of(watched.page)) == (["ethanol"], ["CCO"])


def test_a_table_keeps_its_columns_and_another_column_may_be_chosen(watched: Watched) -> None:
    page = watched.page
    page.locator("#molecules-text").fill("smiles,other,code\nCCO,CCN,x\nCCC,CCCC,y\n")
    page.locator(".read select").first.select_option(label="other")
    page.locator("#predict").click()
    done(page)
    assert smiles_of(page) == ["CCN", "CCCC"]
    assert page.locator("#upload-columns").get_attribute("aria-pressed") == "true"
    heads = page.locator(".grid thead th").all_inner_texts()
    assert [head.strip() for head in heads][2:3] == ["smiles"]


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_is_opened_as_it_is(watched: Watched, packed: bool) -> None:
    content = "name,smiles,µ\nä,CCO,1\n".encode("utf-16")
    content = gzip.compress(content) if packed else content
    name = "<b>1.csv.gz" if packed else "<b>1.csv"
    file: FilePayload = {"name": name, "mimeType": "text/csv", "buffer": content}
    watched.page.locator("input[type=file]").set_input_files(file)
    watched.page.locator("#predict:enabled").click()
    done(watched.page)
    assert watched.page.locator(".card strong").inner_text() == name
    assert (names_of(watched.page), smiles_of(watched.page)) == (["ä"], ["CCO"])


def test_a_dropped_file_that_is_none_of_molecules_is_refused(watched: Watched) -> None:
    page = watched.page
    drop = """() => {
      const data = new DataTransfer();
      data.items.add(new File(["%PDF"], "paper.pdf"));
      dispatchEvent(new DragEvent("drop", { dataTransfer: data, cancelable: true }));
    }"""
    page.locator("#model").wait_for()
    page.evaluate(drop)
    page.get_by_text("paper.pdf is no file of molecules").wait_for()
    page.evaluate(drop.replace("%PDF", "CCO ethanol").replace("paper.pdf", "list.smi"))
    page.get_by_text("list.smi").first.wait_for()
    page.locator("#predict:enabled").click()
    done(page)
    assert (names_of(page), smiles_of(page)) == (["ethanol"], ["CCO"])


def _long_table(rows: int) -> str:
    """A CSV with bad rows: every 1000th molecule is none, every 500th row has a cell too many."""
    lines = ["id,smiles,note"]
    for k in range(rows):
        smiles = "C1CC" if k % 1000 == 999 else f"{'C' * (1 + k % 20)}O"
        lines.append(f"m{k},{smiles},=SUM({k})" + (",surplus" if k % 500 == 250 else ""))
    return "\n".join(lines)


def test_a_long_file_becomes_a_job_that_outlives_the_page(watched: Watched, tmp_path: Path) -> None:
    page, rows = watched.page, 10_000
    path = tmp_path / "library.csv"
    path.write_text(_long_table(rows))
    page.locator("input[type=file]").set_input_files(path)
    page.get_by_text("10,000 molecules").wait_for()
    page.locator("#predict").click()
    page.wait_for_url("**#job=*")
    page.reload()
    page.locator("#progress").wait_for()
    done(page)
    assert f"{rows:,} molecules · 30 could not be read" in page.locator("#summary").inner_text()
    assert page.locator(".grid").get_attribute("aria-rowcount") == str(rows + 1)
    assert page.locator(".grid tbody tr").count() < 60
    with page.expect_download() as downloading:
        page.get_by_text("Download").click()
        page.locator("#download-ndjson").click()
    items = [json.loads(line) for line in Path(downloading.value.path()).read_text().splitlines()]
    assert [item["row"]["id"] for item in items] == [f"m{k}" for k in range(rows)]
    bad = [k for k, item in enumerate(items) if "error" in item]
    assert bad == [k for k in range(rows) if k % 1000 == 999 or k % 500 == 250]
    assert items[0]["row"]["note"] == "=SUM(0)"


def test_a_job_can_be_cancelled(watched: Watched) -> None:
    page = watched.page
    lines = "\n".join(f"{'C' * (1 + k % 90)}N{'C' * (k // 90)}" for k in range(8000))
    file: FilePayload = {"name": "long.smi", "mimeType": "text/plain", "buffer": lines.encode()}
    page.locator("input[type=file]").set_input_files(file)
    page.locator("#predict:enabled").click()
    page.wait_for_url("**#job=*")
    page.locator("#cancel").click()
    page.get_by_text("Cancelled").wait_for()
    page.locator("#progress").wait_for(state="hidden")
    assert "job=" not in page.url


def test_a_run_in_chunks_can_be_cancelled_and_what_was_answered_stays(watched: Watched) -> None:
    page = watched.page
    waiting: list[Route] = []

    def hold(route: "Route") -> None:
        waiting.append(route)
        if len(waiting) <= 2:
            route.continue_()

    page.route("**/predict", hold)
    page.locator("#molecules-text").fill("\n".join("C" * (1 + k) for k in range(400)))
    page.locator("#predict").click()
    page.get_by_text("200 of 400").wait_for()
    page.locator("#cancel").click()
    done(page)
    assert "400 molecules · 200 not predicted" in page.locator("#summary").inner_text()
    page.unroute_all(behavior="ignoreErrors")
