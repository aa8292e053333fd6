"""The page of a service whose model has everything that the page can show of a molecule."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.service.page.conftest import Watched
from tests.service.page.detail.described import save_described
from tests.service.test_server import process

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="package")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the service."""
    artifact = save_described(tmp_path_factory.mktemp("described") / "pico")
    with process(port=0, artifact=artifact, device="cpu") as (_, url):
        yield url


@pytest.fixture
def told(browser: "Browser", described: str) -> Iterator[Watched]:
    """Its page, not yet open; at the end nothing may have been complained about."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    made = Watched(context.new_page(), described)
    # what a name with HTML in it would do
    made.page.on("dialog", lambda dialog: made.complaints.append(dialog.message))
    yield made
    context.close()
    assert made.complaints == []
    assert made.foreign == []
