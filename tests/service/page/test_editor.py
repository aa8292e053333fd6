"""The editor: what is drawn is predicted as a mol block."""

import hashlib
import re
from typing import TYPE_CHECKING, Any

import pytest
from rdkit import Chem

from service.http.routes.page import FOLDER
from tests.service.page.conftest import Watched, done, smiles_of
from tests.service.page.detail.described import accessibility_complaints

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

VENDOR = FOLDER / "vendor"
_TOOLBAR = 46
"""Pixels at the left of the canvas."""
_BENZENE = (34, 202)
"""The tool that adds a benzene ring, in the toolbar."""


def test_the_vendored_files_are_those_of_the_package() -> None:
    table = dict(
        re.findall(
            r"^\| `([\w.-]+)` \| `([0-9a-f]{64})` \|$",
            (VENDOR / "SOURCE.md").read_text(),
            re.MULTILINE,
        )
    )
    assert set(table) == {path.name for path in VENDOR.iterdir()} - {"SOURCE.md"}
    for name, digest in table.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest, name


@pytest.fixture
def opened(watched: Watched) -> "Page":
    """The page with the editor open, and its result in `window.drawn` when it closes."""
    page = watched.page
    page.locator("#model").wait_for()
    _open(page, "")
    return page


def _open(page: "Page", smiles: str) -> None:
    page.evaluate(
        """async (smiles) => {
          const { openEditor } = await import("./page/editor.js");
          window.drawn = undefined;
          openEditor({ smiles }).then((result) => { window.drawn = result; });
        }""",
        smiles,
    )
    page.locator(".editor-sheet > div").wait_for()


def _written(field: "Locator") -> str:
    """Wait until something is written into a field, and return it: the canvas tells of a click when
    it has drawn what came of it."""
    for _ in range(100):
        if text := field.input_value():
            return text
        field.page.wait_for_timeout(50)
    return ""


def _result(page: "Page") -> Any:
    page.locator("dialog.editor").wait_for(state="detached")
    return page.evaluate("window.drawn")


@pytest.mark.browser
@pytest.mark.slow
class TestEditor:
    """In the browser."""

    def test_what_is_drawn_is_read_from_its_mol_block(
        self, opened: "Page", watched: Watched
    ) -> None:
        box = opened.locator(".editor-sheet").bounding_box()
        assert box is not None
        opened.mouse.click(box["x"] + _BENZENE[0], box["y"] + _BENZENE[1])
        opened.mouse.click(box["x"] + _TOOLBAR + 200, box["y"] + 180)
        assert _written(opened.locator("#editor-text")) == "c1ccccc1"
        opened.get_by_role("button", name="Use this molecule").click()
        result = _result(opened)
        assert "V3000" in result["molBlock"]
        body = {"mol_block": [result["molBlock"]]}
        answer = opened.request.post(f"{watched.url}/predict", data=body).json()
        assert answer["predictions"][0]["smiles"] == "c1ccccc1"

    def test_typed_text_is_taken_as_it_is(self, opened: "Page") -> None:
        text = "C[C@H](N)C(=O)O"
        assert opened.evaluate("document.activeElement.id") == "editor-text"
        opened.keyboard.type(text)
        opened.keyboard.press("Enter")
        assert _result(opened) == {"smiles": text, "molBlock": None}

    def test_nothing_comes_of_giving_up(self, opened: "Page") -> None:
        opened.keyboard.type("xyz")
        opened.get_by_text("The canvas cannot show this text.").wait_for()
        opened.keyboard.press("Escape")
        assert _result(opened) is None

    def test_a_drawing_keeps_its_stereo_when_it_is_changed(
        self, opened: "Page", watched: Watched
    ) -> None:
        opened.keyboard.press("Escape")
        text = "C[C@@H](O)c1ccccc1"
        _open(opened, text)
        box = opened.locator(".editor-sheet").bounding_box()
        assert box is not None
        # far from the molecule: a second one
        opened.mouse.click(box["x"] + _BENZENE[0], box["y"] + _BENZENE[1])
        opened.mouse.click(box["x"] + _TOOLBAR + 60, box["y"] + 60)
        opened.get_by_role("button", name="Use this molecule").click()
        mol = Chem.MolFromMolBlock(_result(opened)["molBlock"])
        parts = Chem.MolToSmiles(mol).split(".")
        assert sorted(parts) == sorted(["c1ccccc1", Chem.CanonSmiles(text)])

    def test_it_comes_only_when_it_is_opened(self, watched: Watched) -> None:
        asked: list[str] = []
        watched.page.on("request", lambda request: asked.append(request.url))
        watched.page.reload()
        watched.page.locator("#model").wait_for()
        watched.page.wait_for_load_state("networkidle")
        assert not any("openchemlib" in url for url in asked)
        watched.page.get_by_role("button", name="Draw").click()
        watched.page.locator(".editor-sheet > div").wait_for()
        assert sum("openchemlib" in url for url in asked) == 1

    @pytest.mark.parametrize("theme", ["light", "dark"])
    def test_it_is_accessible_on_a_white_sheet(self, opened: "Page", theme: str) -> None:
        opened.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
        assert accessibility_complaints(opened, "dialog") == []
        sheet = opened.locator(".editor-sheet")
        ground = sheet.evaluate("one => getComputedStyle(one).backgroundColor")
        assert ground == "rgb(255, 255, 255)"


def test_what_is_drawn_is_predicted(watched: Watched) -> None:
    """From the button to the table, by mouse alone."""
    page = watched.page
    page.locator("#model").wait_for()
    page.locator("#draw").click()
    page.locator(".editor-sheet > div").wait_for()
    box = page.locator(".editor-sheet").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + _BENZENE[0], box["y"] + _BENZENE[1])
    page.mouse.click(box["x"] + _TOOLBAR + 200, box["y"] + 150)
    page.get_by_role("button", name="Use this molecule").click()
    page.locator("dialog.editor").wait_for(state="detached")
    assert _written(page.locator("#molecules-text")) == "c1ccccc1"
    page.locator("#predict").click()
    done(page)
    assert smiles_of(page) == ["c1ccccc1"]
    page.locator(".grid tbody .value").first.wait_for()
