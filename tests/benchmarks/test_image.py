"""The page on the image has the sizes and times that were measured."""

import json
import re
from pathlib import Path

from benchmarks.image import table
from benchmarks.measuring import RESULTS

ROOT = Path(__file__).parents[2]


def test_the_page_shows_what_was_measured() -> None:
    page = " ".join((ROOT / "docs" / "image.md").read_text().split())
    found = json.loads((RESULTS / "image.json").read_text())
    before, after = found["before"], found["after"]
    assert " ".join(table(after).split()) in page
    for image in (before, after):
        assert f"{image['megabytes_above_base']:,} MB" in page
        assert f"{image['start_seconds']['median']:.1f} s" in page
    assert after["megabytes_above_base"] < before["megabytes_above_base"]
    assert after["start_seconds"]["median"] <= 10
    assert after["largest_difference_of_answers"] < 1e-5
    assert re.fullmatch(r"\d+ passed.*", after["golden_tests"])
