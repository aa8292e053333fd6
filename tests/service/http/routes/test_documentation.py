"""`/docs` is all from here: it works without the internet, and asks for nothing from another
host."""

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from service.app import create_app
from service.http.routes import documentation
from service.http.routes.documentation import FOLDER
from service.schemas import PREDICT_EXAMPLES, PredictResponse
from tests.service.doubles import check_problem, serving, settings_of
from tests.service.test_server import process

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.anyio
async def test_every_address_in_the_page_is_ours_and_answers() -> None:
    async with serving() as client:
        page = await client.get("/docs")
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        addresses = re.findall(r'(?:src|href|url)\s*[=:]\s*"([^"]*)"', page.text)
        script = (await client.get("/docs/start.js")).text
        addresses += re.findall(r'\burl: "([^"]*)"', script)
        style = (await client.get("/docs/swagger-ui.css")).text
        addresses += re.findall(r"""url\(["']?([^"')]*)""", style)
        own = [address for address in addresses if not address.startswith("data:")]
        assert set(own) == {
            "docs/swagger-ui.css",
            "docs/swagger-ui-bundle.js",
            "docs/start.js",
            "openapi.json",
        }
        for address in own:
            response = await client.get(f"/{address}")
            assert response.status_code == 200, address
            if address != "openapi.json":
                name = address.removeprefix("docs/")
                assert response.content == (FOLDER / name).read_bytes(), address
        assert "//" not in page.text + script.replace("// by default", "")
        assert "<script>" not in page.text
        assert (await client.get("/docs/SOURCE.md")).status_code == 404
        assert (await client.get("/docs/..%2f__init__.py")).status_code == 404
        assert (await client.get("/redoc")).status_code == 404


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A documentation site of two pages."""
    folder = tmp_path / "site"
    (folder / "reference").mkdir(parents=True)
    (folder / "index.html").write_text("<h1>Home</h1>")
    (folder / "reference/http.html").write_text("<h1>HTTP</h1>")
    monkeypatch.setattr(documentation, "SITE", folder)
    return folder


@pytest.mark.anyio
async def test_the_root_leads_on(site: Path) -> None:
    async with serving() as client:
        about = (await client.get("/")).json()
        for link in about["links"].values():
            response = await client.get(link)  # relative to the root
            assert response.status_code == 200, link
    assert about["name"] == "G-Merging"
    assert set(about["links"].values()) == {"docs", "guide/", "tasks", "model", "metrics"}


@pytest.mark.anyio
async def test_the_root_names_nothing_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documentation, "SITE", tmp_path / "none")
    async with serving(metrics_port=9) as client:
        assert set((await client.get("/")).json()["links"].values()) == {"docs", "tasks", "model"}
        problem = check_problem(await client.get("/guide/index.html"), 404, "not_found")
    assert "make docs" in problem.detail


@pytest.mark.anyio
async def test_the_site_is_shown_and_nothing_beside_it(site: Path) -> None:
    (site.parent / "secret.html").write_text("no")
    async with serving() as client:
        redirect = await client.get("/guide")
        assert (redirect.status_code, redirect.headers["location"]) == (307, "guide/")
        home = await client.get("/guide/")
        assert (home.text, home.headers["content-type"]) == (
            "<h1>Home</h1>",
            "text/html; charset=utf-8",
        )
        assert "default-src 'none'" in home.headers["content-security-policy"]
        assert (await client.get("/guide/reference/http.html")).text == "<h1>HTTP</h1>"
        for path in ("..%2fsecret.html", "reference", "/etc/passwd", "reference/..%2findex.html"):
            check_problem(await client.get(f"/guide/{path}"), 404, "not_found")


@pytest.mark.anyio
async def test_page_may_load_nothing_from_elsewhere() -> None:
    async with serving() as client:
        policy = (await client.get("/docs")).headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert {value for rule in rules.values() for value in rule.split()} == {
        "'none'",
        "'self'",
        "data:",
    }


def test_files_are_those_of_the_package() -> None:
    table = dict(
        re.findall(
            r"^\| `([\w.-]+)` \| `([0-9a-f]{64})` \|$",
            (FOLDER / "SOURCE.md").read_text(),
            re.MULTILINE,
        )
    )
    theirs = {path.name for path in FOLDER.iterdir()} - {"SOURCE.md", "docs.html", "start.js"}
    assert set(table) == theirs
    for name, digest in table.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest, name


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_chromium_shows_the_operations_and_asks_nobody_else(
    pico_artifact: Path, tmp_path: Path
) -> None:
    log = tmp_path / "net.json"
    with process(port=0, artifact=pico_artifact, device="cpu") as (_, url):
        command = [
            str(CHROMIUM),
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            f"--log-net-log={log}",
            "--enable-logging=stderr",
            "--virtual-time-budget=20000",
            "--dump-dom",
            f"{url}/docs",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for path in ("/predict", "/predict/stream", "/v2/models/{name}/versions/{version}/infer"):
        assert f'data-path="{path}"' in done.stdout
    # where a refusal by the page's policy would stand
    assert "CONSOLE" not in done.stderr, done.stderr

    # What the page asked for has its origin as initiator; the browser's own requests have none.
    events = [event.get("params") or {} for event in json.loads(log.read_text())["events"]]
    asked = {event["url"] for event in events if event.get("initiator") == url}
    names = ["docs/swagger-ui.css", "docs/swagger-ui-bundle.js", "docs/start.js", "openapi.json"]
    assert asked == {f"{url}/{name}" for name in names}


@pytest.mark.anyio
async def test_documentation_is_true() -> None:
    async with serving() as client:
        document = (await client.get("/openapi.json")).json()
        assert document == create_app(settings_of()).openapi()
        for name, example in PREDICT_EXAMPLES.items():
            response = await client.post("/predict", json=example["value"])
            if name in ("features", "atoms"):  # for other models: see test_graphs.py
                check_problem(response, 422, "invalid_graph")
            else:
                PredictResponse.model_validate(response.json())
    assert set(document["paths"]) >= {
        "/predict",
        "/tasks",
        "/model",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    answers = document["paths"]["/predict"]["post"]["responses"]
    assert set(answers) == {"200", "400", "401", "413", "415", "422", "429", "500", "503", "504"}
    assert answers["200"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/PredictResponse"
    }
    for status in set(answers) - {"200"}:
        assert list(answers[status]["content"]) == ["application/problem+json"]
    assert list(document["paths"]["/metrics"]["get"]["responses"]["200"]["content"]) == [
        "text/plain"
    ]
