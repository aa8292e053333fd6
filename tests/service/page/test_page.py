"""The page as a browser shows it."""

import pytest

from tests.service.page.conftest import Watched

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_the_page_names_the_model(watched: Watched) -> None:
    chip = watched.page.locator("#model")
    chip.wait_for()
    assert chip.inner_text().startswith("pico ")
