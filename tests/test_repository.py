"""The files about the project agree with the project."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_citation_is_of_this_version_and_licence() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation.keys() >= {"cff-version", "title", "message", "authors"}  # what it must have


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md"])
def test_pages_name_what_is_there(name: str) -> None:
    text = (ROOT / name).read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z-]+)", text):
        assert f"\n{target}:" in makefile
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert (ROOT / link).exists()


def test_every_extra_that_is_named_is_one() -> None:
    extras = PROJECT["optional-dependencies"].keys()
    for path in [ROOT / "Makefile", ROOT / "Dockerfile", *(ROOT / "docs").glob("*.md")]:
        text = path.read_text()
        for named in re.findall(r"""(?:g-merging|["']\.)\[([a-z,]+)\]""", text):
            assert set(named.split(",")) <= extras, path
