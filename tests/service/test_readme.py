"""What the README shows is what a reader gets."""

import json
import re
import shlex
from pathlib import Path

import pytest

from service.core.engine import load_engine
from service.settings import RELEASED_ARTIFACT, Settings
from tests.service.doubles import serving, settings_of

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def block(language: str, holding: str) -> str:
    found = [
        text
        for text in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
        if holding in text
    ]
    assert len(found) == 1, f"{len(found)} blocks of {language} hold {holding!r}"
    return str(found[0])


@pytest.mark.anyio
@pytest.mark.skipif(not RELEASED_ARTIFACT.is_dir(), reason="no released artifact")
async def test_the_curl_of_the_readme_gives_the_answer_of_the_readme() -> None:
    words = shlex.split(block("sh", "/predict -H").replace("\\\n", " "))
    assert words[2] == "http://127.0.0.1:8000/predict"
    body, expected = (
        json.loads(words[words.index("-d") + 1]),
        json.loads(block("json", "predictions")),
    )
    async with serving(load_engine(RELEASED_ARTIFACT, settings_of())) as client:
        answer = (await client.post("/predict", json=body)).json()
    assert answer["model"] == expected["model"]
    for ours, theirs in zip(answer["predictions"], expected["predictions"], strict=True):
        assert (ours["index"], ours["smiles"]) == (theirs["index"], theirs["smiles"])
        assert ours["tasks"].keys() == theirs["tasks"].keys()
        for task, labels in theirs["tasks"].items():
            assert ours["tasks"][task] == pytest.approx(labels, abs=1e-4)


def test_every_setting_is_in_the_table_with_its_default() -> None:
    for name, field in Settings.model_fields.items():
        default = "the released model" if name == "artifact" else f"`{field.default}`"
        assert f"| `GMERGING_{name.upper()}` | {default} | {field.description} |" in README


def test_results_table_is_the_one_that_was_measured() -> None:
    folder = ROOT / "results/gcn_supervised_contextpred"
    assert (folder / "table.md").read_text().strip() in README
    methods = json.loads((folder / "summary.json").read_text())["methods"]
    shown = {
        "fine-tuned": "finetuned",
        "`own`": "gmerging_own",
        "`moe`": "gmerging_moe",
        "weight average": "weight_average",
    }
    assert (
        ", ".join(
            f"{title} {100 * methods[name]['batch']['average']:.1f}"
            for title, name in shown.items()
        )
        in README
    )
