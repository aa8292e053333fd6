"""The labels of ToxCast, described by the words of their names: assay source, cells, target, time,
direction of the signal (`vocabulary/toxcast.yaml`)."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from merging.config.reading import read_values
from models.errors import ConfigError
from models.meaning import Direction, LabelText

_FILE = Path(__file__).parent / "vocabulary" / "toxcast.yaml"
_DOWN = "dn"
_ONE = "active in the assay"


class _Word(BaseModel):
    """What a word of a label means.

    Attributes:
        text: in a sentence.
        name: in the name of a label; None if it is `text`.
        cells: of an assay, the cell line.
        bad: direction of the signal in which a hit warns of harm.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    name: str | None = None
    cells: str = ""
    bad: Literal["never", "up", "down", "always"] = "never"

    def warns(self, way: str) -> bool:
        """Return whether a hit with the signal going this way warns of harm."""
        return self.bad in ("always", way)


class _Pattern(BaseModel):
    """How a kind of label is built; its groups are words of the vocabulary of their name.

    Attributes:
        label: regular expression.
        name, measured: with `{group}`, `{group.name}` and `{group.cells}`.
        direction: of all labels of this kind; None: by `bad` and by the words.
        bad: directions of the signal in which a hit warns of harm.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    name: str
    measured: str
    direction: Direction | None = None
    bad: tuple[str, ...] = ()


class _Vocabulary(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    patterns: tuple[_Pattern, ...]
    words: dict[str, dict[str, _Word]]


class _Shown:
    """A word in a template: `{word}`, `{word.name}`, `{word.cells}`."""

    def __init__(self, word: _Word) -> None:
        self.name = word.text if word.name is None else word.name
        self.cells, self._text = word.cells, word.text

    def __str__(self) -> str:
        return self._text


def toxcast_label(label: str) -> LabelText:
    """Describe a label of ToxCast. Raises ConfigError: no pattern fits it, or a word of it is not
    known."""
    vocabulary = _vocabulary()
    for pattern in vocabulary.patterns:
        if found := re.fullmatch(pattern.label, label):
            return _described(label, pattern, found.groupdict(""), vocabulary.words)
    raise ConfigError(f"got label {label!a}, expected a name that {_FILE.name} knows")


def _described(
    label: str,
    pattern: _Pattern,
    groups: Mapping[str, str],
    vocabulary: Mapping[str, Mapping[str, _Word]],
) -> LabelText:
    words = {
        group: _Word(text=word) if group == "hours" else _word(label, vocabulary[group], word)
        for group, word in groups.items()
    }
    way = groups.get("way", "").replace(_DOWN, "down")
    warns = way in pattern.bad or any(word.warns(way) for word in words.values())
    shown = {group: _Shown(word) for group, word in words.items()}
    return LabelText(
        name=pattern.name.format(**shown).strip(),
        measured=pattern.measured.format(**shown),
        direction=pattern.direction or ("bad" if warns else "neither"),
        one=_ONE,
    )


def _word(label: str, known: Mapping[str, _Word], word: str) -> _Word:
    if word not in known:
        raise ConfigError(f"got label {label!a} with word {word!a}, expected one of {_FILE.name}")
    return known[word]


@cache
def _vocabulary() -> _Vocabulary:
    return _Vocabulary.model_validate(read_values(_FILE, ()))
