"""`/` and the files of the page."""

import re

import pytest

from service.http.routes.page import FOLDER
from tests.service.doubles import check_problem, serving

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.mark.anyio
async def test_a_browser_gets_the_page_and_others_a_description() -> None:
    async with serving() as client:
        page = await client.get("/", headers=BROWSER)
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.text == (FOLDER / "index.html").read_text()
        assert (await client.get("/")).json()["name"] == "G-Merging"
        for answer in (page, await client.get("/")):
            assert "Accept" in answer.headers["vary"].split(", ")
        for name in re.findall(r'(?:src|href)="(page/[^"]*)"', page.text):
            assert (await client.get(f"/{name}")).status_code == 200, name


@pytest.mark.anyio
async def test_a_page_that_the_browser_has_keeps_its_policy() -> None:
    async with serving() as client:
        first = await client.get("/", headers=BROWSER)
        again = await client.get("/", headers={**BROWSER, "If-None-Match": first.headers["etag"]})
    assert again.status_code == 304
    for name in ("content-security-policy", "cache-control", "etag"):
        assert again.headers[name] == first.headers[name]


@pytest.mark.anyio
async def test_the_page_may_load_nothing_from_elsewhere() -> None:
    async with serving() as client:
        page = await client.get("/", headers=BROWSER)
    rules = dict(
        rule.strip().split(" ", 1) for rule in page.headers["content-security-policy"].split(";")
    )
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    namespace = '"http://www.w3.org/2000/svg"'
    for path in FOLDER.rglob("*"):
        if path.suffix in (".html", ".css", ".js") and path.parent.name != "vendor":
            text = path.read_text().replace(namespace, "")
            assert not re.search(r"""["'(]\s*(?:https?:)?//""", text), path
    assert "style=" not in page.text
    assert not re.search(r"<script(?![^>]*src=)", page.text)


@pytest.mark.anyio
async def test_every_script_is_sent_and_only_once() -> None:
    async with serving() as client:
        for path in FOLDER.rglob("*.js"):
            name = path.relative_to(FOLDER).as_posix()
            first = await client.get(f"/page/{name}")
            assert first.headers["content-type"] == "text/javascript; charset=utf-8"
            assert first.content == path.read_bytes()
            again = await client.get(
                f"/page/{name}", headers={"If-None-Match": first.headers["etag"]}
            )
            assert (again.status_code, again.content) == (304, b"")


@pytest.mark.anyio
async def test_nothing_beside_the_page_is_sent() -> None:
    async with serving() as client:
        for path in ("..%2f__init__.py", "index.html", "vendor", "nothing.js"):
            check_problem(await client.get(f"/page/{path}"), 404, "not_found")
