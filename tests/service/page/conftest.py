"""A service and a browser for the tests of the page."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.service.test_server import process

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


# Of this package, not of the session: while it is open no other event loop runs in this thread.
@pytest.fixture(scope="package")
def browser() -> Iterator["Browser"]:
    """Debian's Chromium, without a window."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as tool:
        made = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture(scope="package")
def address(pico_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service of the small model that the tests train, with jobs."""
    jobs = tmp_path_factory.mktemp("jobs")
    with process(port=0, artifact=pico_artifact, device="cpu", jobs=jobs) as (_, url):
        yield url


class Watched:
    """A page of the browser that notes what it should not do.

    Attributes:
        page: of playwright.
        complaints: errors of the console and of scripts.
        foreign: addresses outside the service that were asked for.
    """

    def __init__(self, page: "Page", url: str) -> None:
        self.page, self.url = page, url
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._asked)

    def _heard(self, message: "ConsoleMessage") -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _asked(self, request: "Request") -> None:
        if not request.url.startswith((self.url, "blob:", "data:")):
            self.foreign.append(request.url)


def cells_of(page: "Page", column: int) -> list[str]:
    """The texts of a column of the table, of the rows that are drawn; 1 is the first column."""
    cells = page.locator(f".grid tbody [aria-colindex='{column}']")
    return [text.strip() for text in cells.all_inner_texts()]


def names_of(page: "Page") -> list[str]:
    """The names of the molecules whose rows are drawn, in order."""
    return page.locator(".grid tbody .texts .name").all_text_contents()


def smiles_of(page: "Page") -> list[str]:
    """The SMILES of the molecules whose rows are drawn, in order."""
    return page.locator(".grid tbody .texts .smiles").all_text_contents()


def predict(page: "Page", text: str) -> None:
    """Write molecules into the field, and wait until all of them are predicted."""
    page.locator("#molecules-text").fill(text)
    page.locator("#predict").click()
    done(page)


def done(page: "Page") -> None:
    """Wait until a run is over."""
    page.locator("#molecules").wait_for()
    page.locator("body:not(.running)").wait_for()


@pytest.fixture
def watched(browser: "Browser", address: str) -> Iterator[Watched]:
    """The page of the service, open; at the end nothing may have been complained about."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    made = Watched(context.new_page(), address)
    made.page.goto(address)
    yield made
    context.close()
    assert made.complaints == []
    assert made.foreign == []
