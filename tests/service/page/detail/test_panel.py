"""The panel of a molecule, as a chemist uses it."""

import math
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.service.page.conftest import Watched
from tests.service.page.detail.described import (
    ASPIRIN,
    HOSTILE,
    accessibility_complaints,
    open_panel,
    until_changed,
)

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

MINUS, DASH = "\u2212", "\u2013"
pytestmark = [pytest.mark.browser, pytest.mark.slow]


def _number(text: str) -> float:
    return float(text.replace(MINUS, "-").split()[0])


def _explain(page: "Page", section: str) -> "Locator":
    """Open a section by keyboard, and return its body when the service has answered."""
    opened = page.locator(f"[data-section={section}]")
    opened.locator("summary").focus()
    page.keyboard.press("Enter")
    body = opened.locator(".section-body")
    body.locator(":not(p)").first.wait_for()
    return body


def _predict(watched: Watched, body: dict[str, Any]) -> dict[str, Any]:
    response = watched.page.request.post(f"{watched.url}/predict", data=body)
    item: dict[str, Any] = response.json()["predictions"][0]
    return item


def test_the_panel_takes_the_focus_and_gives_it_back(told: Watched) -> None:
    page = told.page
    open_panel(page, told.url)
    assert page.evaluate("document.activeElement.id") == "panel"
    page.keyboard.press("Escape")
    assert page.locator("#panel").is_hidden()
    assert page.evaluate("document.querySelector('#molecules').contains(document.activeElement)")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Close the panel").click()
    assert page.locator("#panel").is_hidden()
    assert page.evaluate("document.querySelector('#molecules').contains(document.activeElement)")


def test_on_a_phone_it_covers_the_page(told: Watched) -> None:
    page = told.page
    page.set_viewport_size({"width": 390, "height": 800})
    open_panel(page, told.url)
    box = page.locator("#panel").bounding_box()
    assert box is not None
    assert (box["x"], box["y"], box["width"], box["height"]) == (0, 0, 390, 800)
    assert page.locator("#panel").evaluate("panel => panel.scrollWidth <= panel.clientWidth")
    reached = set()
    for _ in range(40):  # around, and nothing behind the panel is reached
        page.keyboard.press("Tab")
        inside = "document.querySelector('#panel').contains(document.activeElement)"
        reached.add(page.evaluate(f"document.activeElement === document.body || {inside}"))
    assert reached == {True}
    page.set_viewport_size({"width": 1400, "height": 800})
    assert not page.locator(".top").evaluate("top => top.inert")


def test_values_are_those_of_the_service_and_say_where_they_lie_among_drugs(told: Watched) -> None:
    page = told.page
    open_panel(page, told.url)
    body = {"smiles": ASPIRIN, "explain": ["drugs"]}
    item = _predict(told, body)
    rows = page.locator("#panel .values tbody tr").all()
    expected = [("clintox", "CT_TOX"), ("tox21", "NR-AR"), ("bbbp", "p_np")]
    assert len(rows) == len(expected)
    for row, (task, label) in zip(rows, expected, strict=True):
        assert _number(row.locator(".answer").inner_text()) == round(item["tasks"][task][label], 3)
        above = re.search(r"above (\d+) %", row.inner_text())
        assert above is not None
        assert abs(float(above[1]) - item["drugs"][task][label]) <= 0.5
    card = page.locator("#panel .label-card").inner_text()
    assert "Whether CT_TOX was found." in card
    assert "high is bad" in card
    assert "ROC-AUC on test molecules 0.91 (0.85 to 0.96)" in card


def test_contributions_add_up_to_the_answer(told: Watched) -> None:
    page = told.page
    open_panel(page, told.url)
    for label in range(3):  # of network and trees, of trees alone, of the network alone
        page.locator("#panel .values input").nth(label).check()
        if label:
            page.locator("#panel .section-body[aria-busy]").wait_for(state="detached")
        else:
            _explain(page, "atoms")
        body = page.locator("[data-section=atoms] .section-body")
        lines = [
            (row.locator("th").inner_text(), _number(row.locator("td").inner_text()))
            for row in body.locator(".sums tr").all()
        ]
        parts = [value for name, value in lines if not name.startswith(("Sum", "Probability"))]
        total = dict(lines)["Sum: log-odds"]
        assert total == pytest.approx(sum(parts), abs=1e-3 * len(parts))
        answer = page.locator("#panel .values .answer").nth(label).inner_text()
        assert 1 / (1 + math.exp(-total)) == pytest.approx(_number(answer), abs=1e-3)
        assert lines[-1] == (lines[-1][0], _number(answer))
        amounts = body.locator("table.bars").first.locator(".amount").all_inner_texts()
        atoms = [value for name, value in lines if name.startswith("Atoms")]
        rounding = 1e-3 * (len(amounts) + len(atoms))
        assert sum(map(_number, amounts)) == pytest.approx(sum(atoms), abs=rounding)


def test_parts_of_network_and_trees_are_shown_apart(told: Watched) -> None:
    page = told.page
    open_panel(page, told.url)
    body = _explain(page, "atoms")
    sums = {}
    for name in ("network and trees", "network", "trees"):
        body.locator(".switch").first.get_by_text(name, exact=True).click()
        amounts = body.locator("table.bars").first.locator(".amount").all_inner_texts()
        sums[name] = sum(map(_number, amounts))
        assert body.locator("caption").first.inner_text().endswith(f" of {name}")
    assert sums["network and trees"] == pytest.approx(sums["network"] + sums["trees"], abs=1e-2)
    body.locator(".switch").last.get_by_text("atom", exact=True).click()
    names = body.locator("table.bars").first.locator("tbody th").all_inner_texts()
    assert set(names[:8]) <= {"C", "O"}
    assert names[8] == "5 further atoms"
    assert "vermilion raises the answer" in body.inner_text()


def test_a_group_is_removed_and_predicted_again(told: Watched) -> None:
    page = told.page
    open_panel(page, told.url)
    body = _explain(page, "atoms")
    button = body.get_by_role("button", name=f"Predict without carboxylic acid, atoms 11{DASH}13")
    button.focus()
    page.keyboard.press("Enter")
    shown = body.locator(".removed p")
    shown.wait_for()
    item = _predict(told, {"smiles": "CC(=O)Oc1ccccc1", "tasks": ["clintox"]})
    assert f"Without it: {item['tasks']['clintox']['CT_TOX']:.3f} in place of" in shown.inner_text()
    assert button.evaluate("button => button === document.activeElement")
    page.keyboard.press("Enter")
    assert body.locator(".removed").count() == 0


def test_atoms_are_coloured_anew_on_focus_and_by_theme(told: Watched) -> None:
    page = told.page
    open_panel(page, told.url)
    body = _explain(page, "atoms")
    picture = body.locator("img.drawing").first
    before = until_changed(picture, None)
    body.get_by_role("button", name=re.compile("Predict without")).first.focus()
    lit = until_changed(picture, before)
    page.locator("#panel").focus()
    assert until_changed(picture, lit) == before
    while page.locator("html").get_attribute("data-theme") != "dark":
        page.locator("#theme").click()
    assert until_changed(picture, before) != lit


def test_alerts_and_experts_are_told(told: Watched) -> None:
    page = told.page
    open_panel(page, told.url, "O=[N+]([O-])c1ccccc1 nitro")
    alerts = _explain(page, "alerts").inner_text()
    assert f"nitro group (BRENK), atoms 1{DASH}3" in alerts
    experts = _explain(page, "experts")
    rows = experts.locator(".shares tbody tr").all_inner_texts()
    assert [re.split(r"\s{2,}|\t", row.strip())[0] for row in rows] == [
        "network",
        "trees on fingerprints",
    ]
    assert all("50 %" in row for row in rows)
    heatmap = experts.locator(".heatmap")
    heads = heatmap.locator("thead th").all_inner_texts()
    assert heads == ["bbbp", "clintox", "tox21"]
    for row in heatmap.locator("tbody tr").all():
        weights = [float(text) for text in row.locator("td").all_inner_texts()]
        assert sum(weights) == pytest.approx(1, abs=0.02)
    assert heatmap.locator("tbody th").all_inner_texts() == ["clintox", "tox21", "bbbp"]


def test_what_a_model_does_not_offer_is_said_in_one_line(watched: Watched) -> None:
    page = watched.page
    open_panel(page, watched.url)
    offered = page.request.get(f"{watched.url}/tasks").json()["tasks"][0]["explanations"]
    assert "drugs" not in offered
    assert page.locator("#panel .percentile").count() == 0
    sections = page.locator("#panel [data-section]").evaluate_all(
        "all => all.map((one) => one.dataset.section)"
    )
    assert set(sections) == {"atoms", "domain", "alerts", "experts"} & set(offered)
    if "domain" not in offered:
        line = "This model does not offer “How far to trust it” for these labels."
        assert line in page.locator("#panel").inner_text()


def test_names_with_html_are_text(told: Watched) -> None:
    page = told.page
    open_panel(page, told.url, f"smiles,name,note\n{ASPIRIN},{HOSTILE},<b>bold</b>")
    assert page.locator("#panel h2").inner_text() == HOSTILE
    assert HOSTILE in page.locator("#panel .values").inner_text()
    page.locator("#panel details.section", has_text="What came with it").locator("summary").click()
    assert "<b>bold</b>" in page.locator("#panel .fact-list").inner_text()
    assert page.locator("#panel img[src='x'], #panel b").count() == 0


def test_closing_the_panel_stops_what_is_asked(told: Watched) -> None:
    page = told.page
    open_panel(page, told.url)
    failed: list[str] = []
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.route("**/predict", lambda route: None)  # never answered
    page.locator("[data-section=atoms] summary").click()
    page.get_by_text("Asking the service …").wait_for()
    page.get_by_role("button", name="Close the panel").click()
    page.wait_for_timeout(100)
    assert failed == [f"{told.url}/predict"]
    page.unroute("**/predict")
    page.keyboard.press("Enter")  # the row has the focus
    page.locator("#panel .values").wait_for()
    assert _explain(page, "atoms").locator(".sums").count() == 1


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_panel_is_accessible(told: Watched, theme: str) -> None:
    page = told.page
    page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
    open_panel(page, told.url, "O=[N+]([O-])c1ccccc1 nitro")
    for section in ("atoms", "alerts", "experts"):
        _explain(page, section)
    page.get_by_role("button", name=re.compile("Predict without")).first.click()
    page.locator(".removed p").wait_for()
    assert accessibility_complaints(page, "#panel") == []


def test_trust_is_what_the_service_measured(told: Watched) -> None:
    page = told.page
    open_panel(page, told.url)
    page.locator("#panel .values input").nth(1).check()  # NR-AR was measured in full
    body = {"smiles": ASPIRIN, "tasks": ["tox21"], "explain": ["domain"]}
    item = _predict(told, body)
    near, band = item["domain"]["tox21"]["nearest"][0], item["domain"]["tox21"]["labels"]
    shown = _explain(page, "domain").inner_text()
    assert f"similarity {near['similarity']:.2f}" in shown
    assert f"row {near['row']} of the data" in shown
    assert f"{band['NR-AR']['band']['molecules']} molecules" in shown
    assert "structure not shown" in shown  # the service has none
    assert accessibility_complaints(page, "#panel") == []


TRUST = """async ([item, label]) => {
  const { explainTrust } = await import("./page/detail/trust.js");
  const inquiry = { askOne: async () => ({ item }) };
  const parts = await explainTrust({ inquiry, label });
  const holder = document.createElement("div");
  holder.append(...parts);
  document.body.append(holder);
  return holder.innerText.replaceAll("\\n", " ");
}"""


def test_trust_is_put_into_words(watched: Watched) -> None:
    """Of answers as the service gives them (`TaskDomainOut`)."""
    label = {
        "name": "p_np",
        "title": "penetration",
        "isProbability": True,
        "unit": None,
        "task": {"name": "bbbp"},
        "column": "bbbp.p_np",
        "meaning": {"one": "penetrates"},
    }
    nearest = [
        {"similarity": 1.0, "row": 7, "smiles": "CCO", "values": {"p_np": 1}},
        {"similarity": 0.31, "row": 9},
    ]
    band = {"from": 0.1, "to": 0.34, "molecules": 210, "metric": "roc_auc"}
    far = {**band, "score": 0.73, "error": 0.279, "error_of_base": 0.241}
    unsure = {"confidence": 0.9, "set": [0, 1], "coverage": {"0": 0.91, "1": 0.88}}
    known = {"band": far, "conformal": unsure, "spread": 0.62}
    item = {
        "tasks": {"bbbp": {"p_np": 0.4}},
        "domain": {"bbbp": {"nearest": nearest, "labels": {"p_np": known}}},
    }
    text = watched.page.evaluate(TRUST, [item, label])
    for words in (
        "measured: penetrates",
        "structure not shown",
        "similarity 0.31",
        "the same fingerprint",
        "similarity 0.10 to 0.34, 210 molecules",
        "ROC-AUC 0.73; Brier score 0.279, against 0.241 for always answering the base rate",
        "no better than the base rate: do not rely on it",
        "At 90 % confidence: neither outcome can be excluded",
        "not “penetrates”: 91 %; penetrates: 88 %",
        "differ by 0.62 log-odds",
    ):
        assert words in text, words
    item["domain"]["bbbp"]["labels"] = {}
    text = watched.page.evaluate(TRUST, [item, label])
    assert "Too few molecules were measured" in text
    assert "No set is given" in text

    number = {**label, "isProbability": False, "unit": "h", "meaning": {}}
    values = {"band": {**far, "metric": "mae", "error_of_base": 4}, "spread": 1.5}
    values["conformal"] = {"confidence": 0.9, "interval": [0.5, 7], "coverage": {"all": 0.9}}
    item["domain"]["bbbp"]["labels"] = {"p_np": values}
    text = watched.page.evaluate(TRUST, [item, number])
    assert "mean absolute error 0.279 h, against 4 h for always answering the same" in text
    assert "At 90 % confidence: between 0.5 and 7 h" in text
    assert "differ by 1.5 h" in text
