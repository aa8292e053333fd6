"""Debian's Chromium for scripts that open the page."""

import shutil

from playwright.sync_api import Browser, Playwright


def chromium(tool: Playwright) -> Browser:
    """Start Chromium without a window. Raises RuntimeError if it is not installed."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        raise RuntimeError("got no Chromium, expected the command chromium (Debian: chromium)")
    return tool.chromium.launch(executable_path=path, args=["--no-sandbox"])
