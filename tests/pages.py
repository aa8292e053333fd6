"""The README and the pages of `docs/`: their code blocks and tables, which tests run and compare
with what was measured."""

import re
import shlex
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("**/*.md")))
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced code block.

    Attributes:
        page: the file that it is in.
        line: number of its first line.
        language: after the fence; empty if there is none.
        text: what is in it.
    """

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        """Name the block in the output of tests."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def page(name: str) -> Path:
    """Return a page of `docs/`. Raises AssertionError: there is none of this name."""
    path = ROOT / "docs" / name
    assert path in PAGES, f"docs/{name}: no such page"
    return path


@cache
def blocks(path: Path, language: str | None = None) -> tuple[Block, ...]:
    """Return the fenced code blocks of a page, of one language or of all."""
    text = path.read_text()
    found = (
        Block(path, text.count("\n", 0, match.start()) + 2, match["language"], match["text"])
        for match in _FENCE.finditer(text)
    )
    return tuple(block for block in found if language in (None, block.language))


def block(path: Path, language: str, holding: str) -> str:
    """Return the text of the page's only block of a language that holds a text."""
    found = [one.text for one in blocks(path, language) if holding in one.text]
    assert len(found) == 1, f"{path.name}: {len(found)} blocks of {language} hold {holding!r}"
    return found[0]


def command_lines(path: Path) -> list[str]:
    """Return the commands in a page's shell blocks; continued lines are joined."""
    texts = (one.text.replace("\\\n", " ") for one in blocks(path, "sh"))
    return [line.strip() for text in texts for line in text.splitlines()]


def commands(path: Path, program: str = "gmerging") -> list[list[str]]:
    """Return the arguments of every command of a program in a page, without comments, also of
    those in a pipeline."""
    # Others have texts over several lines, such as a request's body.
    named = [line for line in command_lines(path) if f"{program} " in line]
    lines = [shlex.split(line, comments=True) for line in named]
    stages = [
        list(stage)
        for words in lines
        for is_pipe, stage in groupby(words, "|".__eq__)
        if not is_pipe
    ]
    return [words[1:] for words in stages if words[0] == program]


def shows(path: Path, text: str) -> bool:
    """Return whether a page holds a text, wherever its lines are broken."""
    return " ".join(text.split()) in " ".join(path.read_text().split())
