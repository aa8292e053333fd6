"""Hooks of MkDocs (`mkdocs.yml`): pages that are generated from the code, and the repository's
files that pages link to.

Pages in `docs/` link to other files of the repository as a code host resolves them
(`../results/admet/boards.md`). The site gets a copy of every such file, below `repository/`.
"""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# MkDocs loads this file by its path; an installed copy of the project may lie elsewhere.
sys.path.insert(0, str(ROOT))

from docs_build.command_page import command_page  # noqa: E402
from docs_build.configuration_page import configuration_page  # noqa: E402
from docs_build.http_page import http_page  # noqa: E402
from docs_build.python_page import python_page  # noqa: E402
from docs_build.service_pages import metrics_page, settings_page  # noqa: E402

GENERATED = {
    "reference/cli.md": command_page,
    "reference/configuration.md": configuration_page,
    "reference/http.md": http_page,
    "reference/metrics.md": metrics_page,
    "reference/python.md": python_page,
    "reference/settings.md": settings_page,
}
"""The function that writes each generated page, by its path in the site's sources."""
DOCS = ROOT / "docs"
COPIES = "repository"
PLACES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}
"""Files of the repository that have another place in the site than below `repository/`."""
_LINK = re.compile(r"(?<=\]\()(?!\w+:|/)(?P<target>[^)\s#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, the changelog, and copies of files that pages link to."""
    for uri, write in GENERATED.items():
        files.append(File.generated(config, uri, content=write()))
    changes = ROOT / "CHANGELOG.md"
    files.append(File.generated(config, PLACES[changes.name], abs_src_path=str(changes)))
    unread = [Path(str(file.abs_src_path)) for file in files if _is_page_of_ours(file)]
    while unread:
        for path in linked_files(unread.pop()):
            uri = uri_of(path)
            if uri.startswith(f"{COPIES}/") and uri not in files.src_uris:
                files.append(File.generated(config, uri, abs_src_path=str(path)))
                unread += [path] if path.suffix == ".md" else []
    return files


def _is_page_of_ours(file: File) -> bool:
    return file.is_documentation_page() and file.abs_src_path is not None


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Point links to files of the repository at their place in the site."""
    source = page.file.abs_src_path
    return markdown if source is None else resolve_links(markdown, Path(source), page.file.src_uri)


def linked_files(page: Path) -> Iterator[Path]:
    """Yield the existing files of the repository that a Markdown file links to."""
    for link in _LINK.finditer(page.read_text()):
        path = (page.parent / link["target"]).resolve()
        if path.is_file() and path.is_relative_to(ROOT):
            yield path


def uri_of(path: Path) -> str:
    """Return the place of a file of the repository in the site's sources."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    inside = path.relative_to(ROOT).as_posix()
    if path.suffix == ".py":
        inside += ".txt"  # a browser shows it, and nobody takes it for code of ours
    return PLACES.get(inside, f"{COPIES}/{inside}")


def resolve_links(markdown: str, source: Path, uri: str) -> str:
    """Return a page's text with links to files as the site has them.

    Links to what does not exist stay as they are: MkDocs reports them.

    Args:
        markdown: text of the page.
        source: the file that the text is from.
        uri: place of the page in the site's sources.
    """

    def resolved(link: re.Match[str]) -> str:
        path = (source.parent / link["target"]).resolve()
        if not (path.is_file() and path.is_relative_to(ROOT)):
            return link["target"]
        return os.path.relpath(uri_of(path), Path(uri).parent)

    return _LINK.sub(resolved, markdown)
