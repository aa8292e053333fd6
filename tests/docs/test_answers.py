"""Requests that the README and the pages show get the answers that they show."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Match

from service.app import create_app
from service.core.artifact_engine import load_engine
from service.schemas import MatchRequest, ModelAction, PredictRequest
from service.settings import RELEASED_ARTIFACT
from tests.pages import PAGES, README, block, blocks, page
from tests.service.doubles import serving, settings_of


@pytest.mark.anyio
@pytest.mark.parametrize("path", [README, page("requests.md")], ids=lambda path: path.name)
async def test_the_curl_of_a_page_gives_the_answer_of_the_page(path: Path) -> None:
    words = shlex.split(block(path, "sh", "/predict -H").replace("\\\n", " "))
    assert words[2] == "http://127.0.0.1:8000/predict"
    body = json.loads(words[words.index("-d") + 1])
    expected = json.loads(block(path, "json", "predictions"))
    async with serving(load_engine(RELEASED_ARTIFACT, settings_of())) as client:
        answer = (await client.post("/predict", json=body)).json()
    assert answer["model"] == expected["model"]
    for ours, theirs in zip(answer["predictions"], expected["predictions"], strict=True):
        assert ours.keys() == theirs.keys()
        assert (ours["index"], ours["smiles"]) == (theirs["index"], theirs["smiles"])
        assert ours["units"] == theirs["units"]
        assert ours["tasks"].keys() == theirs["tasks"].keys()
        for task, labels in theirs["tasks"].items():
            assert ours["tasks"][task] == pytest.approx(labels, abs=1e-4)


@pytest.mark.anyio
async def test_the_atoms_of_the_page_are_those_of_the_answer() -> None:
    """And so is what is left of the molecule without a group."""
    (first, second) = (
        json.loads(words[words.index("-d") + 1]) for name, words in curls() if name == "explain.md"
    )
    expected = json.loads(block(page("explain.md"), "json", "predictions"))
    async with serving(load_engine(RELEASED_ARTIFACT, settings_of())) as client:
        answer = (await client.post("/predict", json=first)).json()
        left = (await client.post("/predict", json=second)).json()
    assert answer["model"] == expected["model"]
    (ours,), (theirs,) = answer["predictions"], expected["predictions"]
    assert ours == _near(theirs)
    (benzene,) = left["predictions"]
    assert benzene["smiles"] == "c1ccccc1"
    assert benzene["tasks"]["skin_reaction"]["sensitiser"] == pytest.approx(0.559, abs=1e-3)


def _near(value: Any) -> Any:
    """What equals JSON whose numbers differ by rounding."""
    if isinstance(value, dict):
        return {key: _near(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_near(inner) for inner in value]
    return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value


def curls() -> list[tuple[str, list[str]]]:
    """Return every curl of every page: the page, and the words. Quoted bodies may span lines."""
    texts = [
        (path.name, one.text.replace("\\\n", " ")) for path in PAGES for one in blocks(path, "sh")
    ]
    found = [
        (name, re.findall(r"^ *(curl (?:'[^']*'|[^'\n])*)", text, re.M)) for name, text in texts
    ]
    return [(name, shlex.split(line, comments=True)) for name, lines in found for line in lines]


@pytest.mark.parametrize(
    ("page_name", "words"), curls(), ids=lambda value: value[:40] if isinstance(value, str) else ""
)
def test_every_curl_asks_a_route_for_what_it_takes(page_name: str, words: list[str]) -> None:
    (address,) = [
        word for word in words if re.match(r"(http://)?(127\.0\.0\.1|localhost):8000", word)
    ]
    url = httpx.URL(address if "://" in address else f"http://{address}")
    is_post = {"-d", "-F", "-T", "POST"} & {*words}
    scope = {
        "type": "http",
        "method": "POST" if is_post else "GET",
        "path": url.path,
        "headers": [],
    }
    app = create_app(settings_of())
    routes = [route for route in app.router.routes if route.matches(scope)[0] is Match.FULL]
    assert routes, f"{page_name}: no {scope['method']} {url.path}"
    if "-d" in words and "..." not in words[words.index("-d") + 1]:
        body = json.loads(words[words.index("-d") + 1])
        kinds = {"/predict": PredictRequest, "/match": MatchRequest}
        kinds.get(url.path, ModelAction).model_validate(body)
