"""Requests that the README and the pages show get the answers that they show."""

import json
import shlex
from pathlib import Path

import pytest

from service.core.engine import load_engine
from service.settings import RELEASED_ARTIFACT
from tests.pages import README, block, page
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
