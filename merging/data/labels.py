"""Labels of a table of molecules: the cells of a column become 0, 1 or missing."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from models.errors import DataError

MISSING = frozenset(
    (
        *("", "na", "n/a", "n.a.", "#n/a", "#na", "<na>", "nan", "-nan", "null", "none", "nil"),
        *(
            "?",
            "-",
            "--",
            "\N{EN DASH}",
            "\N{EM DASH}",
            ".",
            "nd",
            "n.d.",
            "not determined",
            "nt",
            "n.t.",
            "not tested",
            "missing",
        ),
    )
)
"""Cells that say that a label is not known, in lower case; `-` is a class where `+` is one."""
_OPPOSITES = {
    "yes": "no",
    "y": "n",
    "true": "false",
    "t": "f",
    "positive": "negative",
    "pos": "neg",
    "+": "-",
    "present": "absent",
    "active": "decoy",
}
_NEGATIONS = ("non", "not", "no", "in", "im", "un")
_NO_LABELS = frozenset(
    (
        *("id", "index", "split", "set", "subset", "fold", "partition", "cluster", "batch"),
        *("train", "valid", "test", "is_train", "is_valid", "is_test"),
    )
)
QUALIFIERS = "<>=~≤≥±"
_EXPECTED = "expected 0, 1 or a missing value"
_OTHER_TARGETS = "regression is `target: regression`, more than two classes `target: multiclass`"
_SHOWN = 4
_LONGEST = 60  # characters


@dataclass(frozen=True)
class Label:
    """A column of labels as it was read.

    Attributes:
        name: of the column.
        values: by row the number of its class, or of a regression the number itself; NaN where
            missing.
        classes: by its number what a class is called in the file, as first spelt there; of a
            regression none.
    """

    name: str
    values: tuple[float, ...]
    classes: tuple[str, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether the file itself says 0 and 1."""
        return tuple(map(number_in, self.classes)) == (0.0, 1.0)


@dataclass(frozen=True)
class Value:
    """A value of a column: as first spelt, how many cells have it, and the row of the first one."""

    spelling: str
    count: int
    row: int


def read_label(
    name: str, cells: Sequence[str], lines: Sequence[int], positive: str | None = None
) -> Label:
    """Read a column as 0, 1 and missing.

    Two classes are 0 and 1; -1 and 1; two words of which one is known to be the positive one
    (yes/no, active/inactive, toxic/non-toxic, ...); or any two values with `positive` among them.
    Case and surrounding white space do not count.

    Args:
        name: of the column, for the result.
        cells: the column's cells, one for each row.
        lines: where the rows begin in the file, for errors.
        positive: the cell that is class 1; None where the cells say it themselves.

    Raises:
        DataError: the column has not exactly two classes, or it is not known which of them is 1.
            The message names line and value; file and column are the caller's.
    """
    key_of = keys_of(cells)
    values = values_of(cells, key_of)
    if not values:
        counts = f"{len(cells)} missing values and no other"
        raise DataError(f"got {counts}, expected 0 and 1 in some rows")
    pair = _pair(values, positive)
    if len(values) == 1:
        raise DataError(_one_class(values, cells, key_of))
    if len(values) > 2 or pair is None:
        raise DataError(_no_classes(values, lines, pair))
    one, zero = pair
    number = {cell: math.nan if key is None else float(key == one) for cell, key in key_of.items()}
    numbers = tuple(number[cell] for cell in cells)
    return Label(name, numbers, (values[zero].spelling, values[one].spelling))


def why_no_label(name: str, cells: Sequence[str]) -> str | None:
    """Why a column that nobody named as a label is none, by its name or as it numbers the rows.

    None where nothing says so: its cells decide (`read_label`).
    """
    if not name.strip() or name.startswith("Unnamed:"):
        return "it has no name, as an index of rows"
    if name.strip().casefold() in _NO_LABELS:
        return "its name says that it is none"
    numbers = [number_in(cell) for cell in cells[:3]]
    if len(cells) > 2 and numbers in ([0, 1, 2], [1, 2, 3]):
        start = int(numbers[0] or 0)
        if all(number_in(cell) == k for k, cell in enumerate(cells, start)):
            return "it numbers the rows"
    return None


def keys_of(cells: Sequence[str]) -> dict[str, str | None]:
    """By cell as it is written, what it says (`normalised`), or None where it is missing."""
    texts = {cell: " ".join(cell.split()).casefold() for cell in set(cells)}
    missing = MISSING - {"-"} if "+" in texts.values() else MISSING
    return {cell: None if text in missing else normalised(text) for cell, text in texts.items()}


def normalised(text: str) -> str:
    """What a cell says: the value of a number, or a text in lower case."""
    number = number_in(text)
    return " ".join(text.split()).casefold() if number is None else repr(number + 0.0)  # no -0.0


def number_in(text: str) -> float | None:
    """The number that a cell says, also with a decimal comma; None for another text."""
    if "_" in text:  # which Python would read: `1_2` is another class than `12`
        return None
    whole, comma, fraction = text.strip().partition(",")
    try:
        value = float(f"{whole}.{fraction}" if comma and len(fraction) < 3 else text)
    except ValueError:
        return None
    return None if math.isnan(value) else value


def values_of(cells: Sequence[str], key_of: Mapping[str, str | None]) -> dict[str, Value]:
    """By key the values that are not missing, in the order of their first rows."""
    found: dict[str, Value] = {}
    counts: dict[str, int] = {}
    first: dict[str, int] = {}
    for row, cell in enumerate(cells):
        counts[cell] = counts.get(cell, 0) + 1
        first.setdefault(cell, row)
    for cell, row in first.items():
        key = key_of[cell]
        if key is not None:
            before = found.get(key, Value(cell.strip(), 0, row))
            found[key] = Value(before.spelling, before.count + counts[cell], before.row)
    return found


def _pair(values: Mapping[str, Value], positive: str | None) -> tuple[str, str] | None:
    """The keys of class 1 and class 0 among the values, if it is known which they are."""
    if positive is not None:
        one = normalised(positive)
        if one not in values:
            raise DataError(f"got {_some(values)}, expected {positive!r} among them (`positive`)")
        others = [key for key in values if key != one]
        return (one, others[0]) if len(others) == 1 else None
    if {"0.0", "1.0"} <= values.keys():
        return "1.0", "0.0"
    if {"-1.0", "1.0"} == values.keys():
        return "1.0", "-1.0"
    for key in values:
        for opposite in _opposites(key):
            if opposite in values:
                return key, opposite
    return None


def _opposites(word: str) -> list[str]:
    """What class 0 may be called where class 1 has this name."""
    negated = [prefix + between + word for prefix in _NEGATIONS for between in ("", " ", "-", "_")]
    named = [_OPPOSITES[word]] if word in _OPPOSITES else []
    return [*named, *negated, *([word[:-1] + "-"] if word.endswith("+") else [])]


def _one_class(
    values: Mapping[str, Value], cells: Sequence[str], key_of: Mapping[str, str | None]
) -> str:
    ((key, value),) = values.items()
    other = {"0.0": "0 x 1", "1.0": "0 x 0"}.get(key, "no other")
    missing = {cell for cell in cells if key_of[cell] is None}
    spelt = f" (got as {', '.join(map(repr, sorted(missing)[:_SHOWN]))})" if missing else ""
    found = f"{value.count} x {value.spelling[:_LONGEST]} and {other}"
    return f"got {found}, {len(cells) - value.count} missing{spelt}, expected two classes"


def _no_classes(
    values: Mapping[str, Value], lines: Sequence[int], pair: tuple[str, str] | None
) -> str:
    """Why more or other values than two known classes are none."""
    if len(values) == 2:
        remedy = f"say `positive: {quoted(list(values.values())[1].spelling)}`, or the other"
        return f"got two values, {_some(values)}, expected to know which is class 1: {remedy}"
    classes = pair or tuple(key for key in values if key in ("0.0", "1.0"))
    numeric = all(_is_numeric(values[key].spelling) for key in classes)
    if not classes and not _is_numeric(next(iter(values.values())).spelling):
        classes, numeric = tuple(values)[:2], False
    wrong = next(value for key, value in values.items() if key not in classes)
    found = f"line {lines[wrong.row]}: got {quoted(wrong.spelling)}"
    if numeric and _is_numeric(wrong.spelling):
        return f"{found}, {_EXPECTED}; {_OTHER_TARGETS}"
    beside = " and ".join(quoted(values[key].spelling) for key in classes)
    count = f"{len(values)} different values in all"
    remedy = "leave a cell empty where its class is not known, or say `target: multiclass`"
    return f"{found} beside {beside}, {count}, expected two classes; {remedy}"


def _is_numeric(text: str) -> bool:
    """Whether a cell is a number, maybe with a qualifier (`>10`)."""
    return number_in(text.lstrip(QUALIFIERS + " ")) is not None


def quoted(cell: str) -> str:
    """A cell for an error, in quotes; a long one is cut."""
    return repr(cell if len(cell) <= _LONGEST else f"{cell[:_LONGEST]}...")


def _some(values: Mapping[str, Value]) -> str:
    shown = [quoted(value.spelling) for value in values.values()][:_SHOWN]
    return ", ".join(shown) + (f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else "")
