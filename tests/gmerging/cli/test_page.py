"""The page on the command line says what the code says."""

import re
from pathlib import Path

from gmerging.cli.main import EXIT_CODES, front_rows

PAGE = Path(__file__).parents[3] / "docs" / "command-line.md"


def test_the_table_of_exit_codes_is_the_codes() -> None:
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == EXIT_CODES


def test_the_page_names_the_commands_for_use() -> None:
    assert all(f"`gmerging {name}" in PAGE.read_text() for name, *_ in front_rows())
