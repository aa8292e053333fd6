"""The site builds without a warning, has every page in its navigation, and asks nobody else."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

from docs_build import hooks
from docs_build.hooks import GENERATED, linked_files, resolve_links, uri_of
from tests.pages import PAGES, README, ROOT

CONFIG = ROOT / "mkdocs.yml"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(CONFIG), site_dir=str(folder), strict=True))
    return folder


class Loaded(HTMLParser):
    """Addresses that a browser loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" or "src" in given:
            self.found.append(given.get("src") or given.get("href") or "")


def leaves(nav: object) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, dict):
        for inner in nav.values():
            yield from leaves(inner)
    elif isinstance(nav, list):
        for inner in nav:
            yield from leaves(inner)


def test_the_site_has_all_pages_and_a_search(site: Path) -> None:
    for uri in [*GENERATED, "changelog.md"]:
        assert (site / uri).with_suffix(".html").is_file()
    for path in PAGES:
        if path != README:
            assert (site / path.relative_to(ROOT / "docs")).with_suffix(".html").is_file()
    index = (site / "search/search_index.json").read_text()
    assert "GMERGING_MAX_PENDING_COST" in index
    assert "gmerging add-task" in index


def test_the_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for path in pages:
        loaded = Loaded()
        loaded.feed(path.read_text())
        assert not [one for one in loaded.found if re.match(r"(\w+:)?//", one)], path


def test_files_that_pages_link_to_are_in_the_site(site: Path) -> None:
    assert (site / "repository/results/admet/boards.html").is_file()
    assert (site / "repository/results/forests.json").read_bytes() == (
        ROOT / "results/forests.json"
    ).read_bytes()


def test_signatures_and_docstrings_are_shown(site: Path) -> None:
    page = (site / "reference/python.html").read_text()
    for name in ("GMergingError", "load_artifact", "twd", "import_models"):
        assert name in page


def test_every_page_of_the_sources_is_in_the_navigation_once() -> None:
    nav = list(leaves(yaml.safe_load(CONFIG.read_text())["nav"]))
    written = {p.relative_to(ROOT / "docs").as_posix() for p in PAGES if p != README}
    assert sorted(nav) == sorted({*written, *GENERATED, "changelog.md"})


def test_a_page_links_to_files_as_the_site_has_them() -> None:
    page = ROOT / "docs/admet.md"
    for link, expected in (
        ("one-pass.md#x", "one-pass.md#x"),
        ("../results/forests.json", "repository/results/forests.json"),
        ("../merging/data/labels.py", "repository/merging/data/labels.py.txt"),
        ("../README.md", "index.md"),
        ("../nothing.md", "../nothing.md"),
        ("https://example.org/", "https://example.org/"),
    ):
        assert resolve_links(f"a [b]({link}) c", page, "admet.md") == f"a [b]({expected}) c"
    benchmarks = ROOT / "benchmarks/README.md"
    assert uri_of(benchmarks) == "repository/benchmarks/README.md"
    assert resolve_links("[a](../docs/admet.md)", benchmarks, uri_of(benchmarks)) == (
        "[a](../../admet.md)"
    )


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda path: path.name)
def test_links_of_a_page_lead_somewhere_on_a_code_host_too(path: Path) -> None:
    links = re.findall(
        r"(?<!`)\]\((?!\w+:)([^)#\s]+)", re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
    )
    for link in links:
        target = (path.parent / link).resolve()
        generated = target.is_relative_to(ROOT / "docs") and uri_of(target) in GENERATED
        assert target.exists() or generated, link
    assert all(found.is_file() for found in linked_files(path))


def test_wrong_links_stop_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    wrong = ("nothing.md", "index.md#no-such-heading", "../results/nothing.json", "/absolute.md")
    (docs / "index.md").write_text("# Home\n" + "".join(f"\n[wrong]({link})\n" for link in wrong))
    (docs / "orphan.md").write_text("# In no navigation\n")
    monkeypatch.setattr(hooks, "GENERATED", {})
    folders = {"docs_dir": str(docs), "site_dir": str(tmp_path / "site")}
    nav = [{"Home": "index.md"}, {"Changelog": "changelog.md"}]
    config = load_config(str(CONFIG), strict=True, nav=nav, **folders)
    with pytest.raises(Abort):
        build(config)
    warnings = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    for text in (*wrong, "orphan.md"):
        assert [one for one in warnings if (text.partition("#")[2] or text) in one], text
