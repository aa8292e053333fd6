"""Pages of a label and of the model, comparisons and reports."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import pytest

from tests.service.page.conftest import Watched
from tests.service.page.detail.described import (
    ASPIRIN,
    HOSTILE,
    accessibility_complaints,
    open_panel,
    table_address,
)

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]
SIX = ["CCO", ASPIRIN, "c1ccccc1", "CCN", "O=C(O)CC", "CCCl"]
SHOWN = [("show", "clintox.CT_TOX"), ("show", "tox21.NR-AR"), ("show", "bbbp.p_np")]


def _report(name: str = "aspirin") -> str:
    return "#" + urlencode([("report", ASPIRIN), ("name", name), *SHOWN])


def _comparison(smiles: list[str]) -> str:
    pairs = [(key, one) for one in smiles for key in ("smiles", "name")]
    return "#" + urlencode([("compare", ""), *pairs, *SHOWN])


def _view(page: "Page", url: str, address: str) -> str:
    """Open a view, wait for the service, and return its text."""
    page.goto(f"{url}/{address}")
    page.locator("#view h1").wait_for()
    page.locator("#view [aria-busy]").first.wait_for(state="detached")
    return page.locator("#view").inner_text()


def test_a_label_s_page_says_what_the_tasks_say(told: Watched) -> None:
    page = told.page
    text = _view(page, told.url, "#label=clintox.CT_TOX")
    tasks = {task["name"]: task for task in page.request.get(f"{told.url}/tasks").json()["tasks"]}
    task = tasks["clintox"]
    meaning = task["meaning"]["labels"]["CT_TOX"]
    score = meaning["scores"][0]
    facts = [
        meaning["name"],
        meaning["measured"],
        f"the probability of “{meaning['one']}”",
        "high is bad",
        f"{100 * meaning['base_rate']:.1f} % of the molecules",
        "network and trees, their mean",
        "circular fingerprints (ECFP4) (by hand 1)",
        f"{meaning['counts']['train']:,}",
        f"{meaning['positives']['train']:,}",
        f"{score['value']}",
        f"{score['low']} to {score['high']}",
        "Expected calibration error 0.043",
        task["meaning"]["source"],
        task["meaning"]["terms"],
        task["description"],
    ]
    for fact in facts:
        assert fact in text, fact
    assert page.title().startswith(meaning["name"])
    page.get_by_role("link", name="FDA_APPROVED").click()
    page.locator("#view h1", has_text="FDA_APPROVED").wait_for()
    assert "no label nothing.here" in _view(page, told.url, "#label=nothing.here")


def test_a_label_without_meaning_has_a_page(watched: Watched) -> None:
    text = _view(watched.page, watched.url, "#label=tox21.NR-AR")
    assert "the tox21 set" in text
    assert "the probability of “1”" in text


def test_the_model_s_page_shows_its_card_as_text(told: Watched) -> None:
    page = told.page
    text = _view(page, told.url, "#model")
    model = page.request.get(f"{told.url}/model").json()
    for fact in (model["digest"], "3 tasks, 6 labels", "101 approved drugs: a list, 2026-01-01"):
        assert fact in text, fact
    card = page.locator(".model-card")
    assert card.locator("h3").inner_text() == "pico 0.1.0"
    assert f"a link and {HOSTILE}." in card.inner_text()
    assert card.locator("td").all_inner_texts() == ["clintox", f"{HOSTILE} | 0.9"]
    assert card.locator("li").all_inner_texts() == ["first goes on", "second"]
    assert card.locator("pre").inner_text() == "<script>alert(3)</script>"
    links = card.locator("a").evaluate_all("all => all.map((one) => [one.href, one.rel])")
    assert links == [["https://example.org/a", "noreferrer"]]
    assert "Not a link (javascript:alert(2))" in card.inner_text()
    assert page.locator("#view img, #view script").count() == 0


def test_views_lead_back_to_the_table(told: Watched) -> None:
    page = told.page
    open_panel(page, told.url)
    before = page.url
    link = page.get_by_role("link", name="All facts of")
    link.focus()
    page.keyboard.press("Enter")
    page.locator("#view h1").wait_for()
    assert page.evaluate("document.activeElement.tagName") == "H1"
    assert page.locator("#molecules").is_hidden()
    assert accessibility_complaints(page, "#view") == []
    page.get_by_role("link", name="All molecules").click()
    page.locator("#panel .values").wait_for()
    assert page.url == before
    assert link.evaluate("link => link === document.activeElement")
    page.locator("#model").click()
    page.locator("#view[data-view=model]").wait_for()
    page.go_back()
    page.locator("#panel .values").wait_for()


def test_six_molecules_are_compared(told: Watched) -> None:
    page = told.page
    text = _view(page, told.url, _comparison([*SIX, "C"]))
    assert "Comparison of 6 molecules" in text
    body = {"smiles": SIX, "tasks": ["clintox", "tox21", "bbbp"]}
    items = page.request.post(f"{told.url}/predict", data=body).json()["predictions"]
    for row, (task, label) in zip(
        page.locator(".compare tbody tr").all(),
        [("clintox", "CT_TOX"), ("tox21", "NR-AR"), ("bbbp", "p_np")],
        strict=True,
    ):
        values = [item["tasks"][task][label] for item in items]
        texts = [f"{value:.3f}" for value in values]
        cells = row.locator("td").all_inner_texts()
        assert len(cells) == len(texts)
        for text, cell in zip(texts, cells, strict=True):
            assert text in cell
        assert len(set(texts)) > 1
        highest = [value == max(values) for value in values]
        assert ["▲" in cell for cell in cells] == highest
        spread = max(values) - min(values)
        row.evaluate("(row, spread) => { row.spread = spread; }", spread)
    page.get_by_label("Largest differences first").check()
    spreads = page.locator(".compare tbody tr").evaluate_all("all => all.map((row) => row.spread)")
    assert spreads == sorted(spreads, reverse=True)
    page.locator(".compare img.drawing:not(.print-only)").first.wait_for()
    assert len(page.pdf()) > 10_000
    assert accessibility_complaints(page, "#view") == []


def test_a_molecule_that_cannot_be_read_has_its_place(told: Watched) -> None:
    text = _view(told.page, told.url, _comparison(["CCO", "C1CC", ASPIRIN]))
    assert "Comparison of 3 molecules" in text
    cells = told.page.locator(".compare tbody tr").first.locator("td").all_inner_texts()
    assert [bool(cell[:1].isalpha()) for cell in cells] == [False, True, False]


def test_molecules_are_chosen_in_the_table(told: Watched) -> None:
    page = told.page
    page.goto(table_address(told.url, f"CCO ethanol\n{ASPIRIN} aspirin"))
    page.locator("#molecules tbody .value").first.wait_for()
    page.get_by_text("2 molecules").first.wait_for()
    page.get_by_label("Compare ethanol").click()
    page.get_by_role("button", name="Compare: choose another").wait_for()
    page.get_by_label("Compare aspirin").click()
    page.get_by_role("button", name="Compare 2").click()
    page.locator(".compare .compare-name").first.wait_for()
    assert page.locator(".compare-name").all_inner_texts() == ["ethanol", "aspirin"]


def test_a_report_has_everything_and_prints(told: Watched) -> None:
    page = told.page
    page.emulate_media(color_scheme="dark")
    text = _view(page, told.url, _report())
    body = {"smiles": ASPIRIN, "explain": ["drugs", "alerts"]}
    answer = page.request.post(f"{told.url}/predict", data=body).json()
    (item,) = answer["predictions"]
    facts = [
        "aspirin",
        ASPIRIN,
        f"{answer['model']['name']} {answer['model']['version']}",
        answer["model"]["digest"],
        datetime.now(UTC).date().isoformat(),
        "Whether CT_TOX was found.",
        "The answer is the probability of “has CT_TOX”. High is bad.",
        "ROC-AUC on test molecules 0.91 (0.85 to 0.96).",
        "phenol ester (BRENK), atoms",
        "no answer is a statement on the safety of a substance",
    ]
    for task, label in [("clintox", "CT_TOX"), ("tox21", "NR-AR"), ("bbbp", "p_np")]:
        facts.append(f"{item['tasks'][task][label]:.3f}")
        facts.append(f"above {item['drugs'][task][label]:.0f} % of drugs")
    for fact in facts:
        assert fact in text, fact
    assert accessibility_complaints(page, "#view") == []

    # on paper: the picture that is drawn for white, and nothing of the page around it
    page.locator("img.print-only[src]").wait_for(state="attached")
    page.emulate_media(media="print")
    assert page.locator(".top").is_hidden()
    assert page.locator("img.drawing:not(.print-only)").is_hidden()
    assert page.locator("img.print-only").is_visible()
    white = "getComputedStyle(document.documentElement).backgroundColor"
    assert page.evaluate(white) == "rgb(255, 255, 255)"
    assert len(page.pdf()) > 10_000


def test_names_in_a_report_are_text(told: Watched) -> None:
    page = told.page
    _view(page, told.url, _report(HOSTILE))
    assert page.locator("#view h1").inner_text() == HOSTILE
    assert page.locator("#view img[src='x']").count() == 0


@pytest.mark.parametrize("place", ["#report=CCO", "#compare=&smiles=CCO", "#report="])
def test_an_address_that_lacks_something_is_answered_in_words(watched: Watched, place: str) -> None:
    assert "Choose" in _view(watched.page, watched.url, place)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_views_are_accessible(told: Watched, theme: str) -> None:
    told.page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
    for address in ("#model", "#label=clintox.CT_TOX", _report(), _comparison(SIX)):
        _view(told.page, told.url, address)
        assert accessibility_complaints(told.page, "#view") == [], address
