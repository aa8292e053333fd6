"""The page with keys, on a busy service, and for people who cannot see it."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import orjson
import pytest

from service.security import new_key
from tests.service.page.conftest import Watched, done, predict
from tests.service.test_server import process

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Route

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture
def keyed(browser: "Browser", pico_artifact: Path, tmp_path: Path) -> Iterator[tuple[Watched, str]]:
    """A page of a service that asks for a key, not yet open; and a key."""
    key, entry = new_key("chemist")
    keys = tmp_path / "keys.json"
    keys.write_bytes(orjson.dumps([entry.model_dump()]))
    with process(port=0, artifact=pico_artifact, device="cpu", api_keys_file=keys) as (_, url):
        context = browser.new_context()
        yield Watched(context.new_page(), url), key
        context.close()


def test_a_service_with_keys_is_asked_with_the_key(keyed: tuple[Watched, str]) -> None:
    watched, key = keyed
    page = watched.page
    page.goto(watched.url)
    page.get_by_text("This service asks for a key.").wait_for()
    page.locator("#key-field").fill("wrong")
    page.keyboard.press("Enter")
    page.get_by_text("the key is not known").wait_for()
    page.locator("#key-field").fill(key)
    page.keyboard.press("Enter")
    page.locator("#model").wait_for()
    predict(page, "CCO")
    assert page.locator(".value").count() == 6
    stored = page.evaluate(
        "[localStorage.length, sessionStorage.length, document.cookie, location.href]"
    )
    assert stored[:3] == [0, 0, ""]
    assert key not in stored[3]
    assert watched.foreign == []
    assert all("401" in complaint for complaint in watched.complaints)


def test_a_busy_service_is_asked_again_when_it_says(watched: Watched) -> None:
    page = watched.page
    refused: list[str] = []

    def busy(route: "Route") -> None:
        if refused:
            route.continue_()
            return
        refused.append(route.request.url)
        problem = {"status": 429, "code": "rate_limited", "detail": "too many", "title": ""}
        route.fulfill(
            status=429,
            headers={"Retry-After": "1", "content-type": "application/problem+json"},
            body=orjson.dumps(problem),
        )

    page.route("**/predict", busy)
    page.locator("#molecules-text").fill("CCO\nCCC")
    page.locator("#predict").click()
    page.get_by_text("The service is busy").wait_for()
    done(page)
    assert page.locator(".value").count() == 12
    assert all("429" in complaint for complaint in watched.complaints)
    watched.complaints.clear()


def test_when_the_service_is_gone_the_page_says_so(watched: Watched) -> None:
    page = watched.page
    page.route("**/predict", lambda route: route.abort())
    page.locator("#molecules-text").fill("CCO")
    page.locator("#predict").click()
    page.get_by_text("the service does not answer").wait_for()
    assert "1 not predicted" in page.locator("#summary").inner_text()
    watched.complaints.clear()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_accessible(watched: Watched, scheme: Literal["light", "dark"]) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = watched.page
    page.emulate_media(color_scheme=scheme)
    page.locator("#model").wait_for()
    found = {"empty": axe.run(page)}
    predict(page, "name,smiles,dose\nethanol,CCO,1\nbroken,C1CC,2\n")
    page.locator(".grid img").wait_for()
    page.locator("#add-filter").click()
    found["table"] = axe.run(page)
    page.locator("#properties").click()
    found["properties"] = axe.run(page)
    page.keyboard.press("Escape")
    page.locator("#key").click()
    found["key"] = axe.run(page)
    said = {
        where: [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in violations]
        for where, result in found.items()
        if (violations := result.response["violations"])
    }
    assert said == {}


@pytest.mark.parametrize("width", [390, 1280, 2560])
def test_nothing_is_out_of_sight_on_a_screen(watched: Watched, width: int) -> None:
    page = watched.page
    page.set_viewport_size({"width": width, "height": 800})
    predict(page, "CCO ethanol\nC1CC broken")
    sizes = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert sizes[0] <= sizes[1]
    for name in ("#predict", "#properties", "#pictures", "#search", "#draw"):
        box = page.locator(name).bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
