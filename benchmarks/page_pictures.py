"""Pictures of the page for the documentation: `docs/images/page-*.webp`.

python -m benchmarks.page_pictures
"""

import io
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.browser import chromium
from benchmarks.own_service import served

FOLDER = Path("docs/images")
_QUALITY = 82


def save(page: Page, name: str) -> None:
    """Save what a page shows as a small picture."""
    page.mouse.move(0, 0)
    image = Image.open(io.BytesIO(page.screenshot()))
    image.save(FOLDER / f"page-{name}.webp", quality=_QUALITY, method=6)


def opened(browser: Browser, address: str, width: int, height: int, scheme: str) -> Page:
    """Open the page in a window of its own."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    page = context.new_page()
    page.goto(address)
    page.locator("#model").wait_for()
    return page


def with_examples(page: Page) -> None:
    """Predict the examples, and wait for their pictures."""
    page.get_by_role("button", name="Examples").click()
    page.locator("#predict").click()
    page.locator("body:not(.running) .grid img").nth(3).wait_for()


def main() -> None:
    """Take all pictures, with the default release."""
    FOLDER.mkdir(exist_ok=True)
    with served("cpu", {}) as (port, _), sync_playwright() as tool:
        browser = chromium(tool)
        address = f"http://127.0.0.1:{port}"
        for scheme in ("light", "dark"):
            page = opened(browser, address, 1280, 800, scheme)
            with_examples(page)
            for _ in ("up", "down"):
                page.locator("[data-sort='bbb_martins.penetrates']").click()
            save(page, f"table-{scheme}")
        page = opened(browser, address, 1280, 800, "light")
        page.locator("#properties").click()
        save(page, "properties")
        page = opened(browser, address, 1440, 1000, "light")
        with_examples(page)
        page.locator("#molecules tbody tr:not(.spacer) [tabindex]").first.focus()
        page.keyboard.press("Enter")
        page.locator("[data-section=atoms] summary").click()
        page.locator("#panel .sums").wait_for()
        page.locator("[data-section=atoms]").evaluate("section => section.scrollIntoView()")
        save(page, "molecule")
        page = opened(browser, address, 390, 844, "light")
        with_examples(page)
        save(page, "phone")
        browser.close()


if __name__ == "__main__":
    main()
