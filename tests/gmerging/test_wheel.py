"""The wheel in a clean environment, away from the checkout: models, page files and types included,
and without packages that predicting and serving do not need.

`WHEEL_TEST_PYTHON` names another interpreter than the one that runs the tests.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("WHEEL_TEST_PYTHON", sys.executable)
# One module of each package, of those that import little: mypy reads all that they import.
TYPED = """
import gmerging
from merging.cli.parser import summary_of
from models.released import released
from service.sockets import url_of

reveal_type(gmerging.GMergingError)
reveal_type(summary_of)
reveal_type(released)
reveal_type(url_of)
"""
# For training, tables, tests: not what a service needs.
SURPLUS = {"scikit_learn", "matplotlib", "pot", "pandas", "pyarrow", "catboost", "pytest", "mypy"}

pytestmark = pytest.mark.slow


def run(*words: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a user does, who knows nothing of the checkout."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "GMERGING_"))}
    return subprocess.run(
        list(map(str, words)), cwd=folder, env=kept, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    done = run(sys.executable, "-m", "build", "--outdir", folder, ROOT, folder=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def clean(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment with the wheel and what it needs."""
    folder = tmp_path_factory.mktemp("clean")
    (wheel,) = built.glob("*.whl")
    (torch,) = re.findall(r"^TORCH := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    programs = folder / "venv" / "bin"
    pip = (programs / "python", "-m", "pip", "install", "--quiet")
    constraints = ("--constraint", ROOT / "constraints.txt")
    steps: list[tuple[str | Path, ...]] = [
        (PYTHON, "-m", "venv", folder / "venv"),
        (*pip, torch),
        (*pip, *constraints, wheel),
    ]
    for words in steps:
        done = run(*words, folder=folder)
        assert done.returncode == 0, done.stderr
    return programs


@pytest.fixture
def served(clean: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`gmerging serve` on a free port, and its address."""
    words = [str(clean / "gmerging"), "serve", "--port", "0", "--device", "cpu"]
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            lines = iter(process.stderr.readline, "")
            found = (re.search(r"running on (http://[\d.:]+)", line) for line in lines)
            yield process, next(match[1] for match in found if match)
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)


def test_models_come_with_it(clean: Path, tmp_path: Path) -> None:
    done = run(clean / "gmerging", "models", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    releases = ROOT / "models" / "releases"
    assert {row["name"] for row in rows} == {path.name for path in releases.iterdir()}
    assert all(str(ROOT) not in row["folder"] for row in rows)


def test_doctor_finds_no_problem(clean: Path, tmp_path: Path) -> None:
    done = run(clean / "gmerging", "doctor", "--json", folder=tmp_path)
    assert (done.returncode, json.loads(done.stdout)["ok"]) == (0, True), done.stdout


def test_it_serves_predictions_and_its_pages(served: tuple[subprocess.Popen[str], str]) -> None:
    process, url = served
    with httpx.Client(base_url=url, timeout=60) as client:
        answer = client.post("/predict", json={"smiles": "CCO"})
        assert len(answer.json()["predictions"][0]["tasks"]) == 31
        page = client.get("/docs")
        files = re.findall(r'(?:src|href)="([^":]+\.(?:js|css))"', page.text)
        assert len(files) >= 2
        assert all(client.get(page.url.join(file)).status_code == 200 for file in files)
        assert client.get("/", headers={"Accept": "text/html"}).text.startswith("<!DOCTYPE html>")
        for path in (ROOT / "service" / "page").rglob("*.*"):
            name = path.relative_to(ROOT / "service").as_posix()
            if path.suffix in (".js", ".css", ".svg"):
                assert client.get(f"/{name}").content == path.read_bytes(), name
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_it_pulls_nothing_that_serving_does_not_need(clean: Path, tmp_path: Path) -> None:
    done = run(clean / "python", "-m", "pip", "list", "--format", "json", folder=tmp_path)
    names = {row["name"].lower().replace("-", "_") for row in json.loads(done.stdout)}
    assert {"g_merging", "torch", "fastapi"} <= names
    assert not names & SURPLUS


def test_help_says_what_the_extra_adds(clean: Path, tmp_path: Path) -> None:
    done = run(clean / "gmerging", "--help", folder=tmp_path)
    assert done.returncode == 0
    assert "The extra `merging` adds commands" in done.stdout


def test_mypy_sees_its_types(clean: Path, tmp_path: Path) -> None:
    (tmp_path / "snippet.py").write_text(TYPED)
    mypy = (sys.executable, "-m", "mypy", "--python-executable", clean / "python")
    done = run(*mypy, "--strict", "--cache-dir", tmp_path / "cache", "snippet.py", folder=tmp_path)
    assert done.returncode == 0, done.stdout
    revealed = re.findall(r'Revealed type is "(.*)"', done.stdout)
    assert len(revealed) == 4
    assert not any("Any" in kind for kind in revealed), revealed


def test_the_source_distribution_has_what_a_packager_wants_and_nothing_else(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as content:
        inside = {name.partition("/")[2] for name in content.getnames()}
    wanted = {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "SECURITY.md"}
    assert wanted | {"pyproject.toml", "constraints.txt", "models/releases/admet"} <= inside
    tops = {name.partition("/")[0] for name in inside}
    assert not tops & {"tests", "benchmarks", "work", "deploy", ".git"}
