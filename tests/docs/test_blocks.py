"""Every code block of every page is in the language that it names; what is quick to run runs."""

import ast
import json
import subprocess

import pytest
import yaml

from tests.pages import PAGES, ROOT, Block, block, blocks, command_lines, page

LANGUAGES = {"sh", "json", "yaml", "python", "text"}
ALL = [found for path in PAGES for found in blocks(path)]


def of(*languages: str) -> pytest.MarkDecorator:
    found = [one for one in ALL if one.language in languages]
    assert found, f"no blocks of {languages}"
    return pytest.mark.parametrize("one", found, ids=str)


def test_every_block_names_its_language() -> None:
    assert {one.language for one in ALL} == LANGUAGES


@of("json")
def test_json_is_json(one: Block) -> None:
    json.loads(one.text)


@of("yaml")
def test_yaml_is_a_mapping(one: Block) -> None:
    assert isinstance(yaml.safe_load(one.text), dict)


@of("python")
def test_python_is_python(one: Block) -> None:
    ast.parse(one.text)


def test_shell_is_shell() -> None:
    text = "".join(one.text for one in ALL if one.language == "sh" and "<" not in one.text)
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_targets_of_make_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    lines = [line.split() for path in PAGES for line in command_lines(path)]
    targets = {words[words.index("make") + 1] for words in lines if "make" in words}
    assert targets >= {"serve", "test"}
    for target in targets:
        assert f"\n{target}:" in makefile, target


def test_the_model_answers_from_python(capsys: pytest.CaptureFixture[str]) -> None:
    exec(block(page("method.md"), "python", "load_artifact"), {})
    assert "torch.Size([1, " in capsys.readouterr().out
