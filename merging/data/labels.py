"""Binary labels of a table of molecules: reading the cells of a column as 0, 1 or missing."""

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
"""Cells that stand for an unknown label, in lower case; `-` is a class in a column with `+`."""
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
"""Signs before a number that make it a bound or an estimate."""
_EXPECTED = "expected 0, 1 or a missing value"
_OTHER_TARGETS = "regression is `target: regression`, more than two classes `target: multiclass`"
_SHOWN = 4
_LONGEST = 60  # characters


@dataclass(frozen=True)
class Label:
    """A column of labels.

    Attributes:
        name: the name of the column.
        values: for every row the number of its class, or the value of a regression; NaN where
            missing.
        classes: the name of every class, by its number, as first spelt in the file; empty for a
            regression.
    """

    name: str
    values: tuple[float, ...]
    classes: tuple[str, ...] = ()

    @property
    def is_zero_one(self) -> bool:
        """True if the file itself writes the classes as 0 and 1."""
        return tuple(map(parse_number, self.classes)) == (0.0, 1.0)


@dataclass(frozen=True)
class DistinctValue:
    """A distinct value of a column: its first spelling, the number of its cells, and the row of the
    first one."""

    spelling: str
    count: int
    row: int


def read_label(
    name: str, cells: Sequence[str], lines: Sequence[int], positive: str | None = None
) -> Label:
    """Read a column as binary labels.

    The two classes are 0 and 1; -1 and 1; a known pair of words (yes/no, active/inactive,
    toxic/non-toxic, ...); or any two values if `positive` is one of them. Case and surrounding
    white space are ignored.

    Args:
        name: the name of the column.
        cells: the cells of the column, one per row.
        lines: the line of the file at which every row begins, for error messages.
        positive: the cell of class 1; None where the cells imply it.

    Raises:
        DataError: the column does not have two classes, or it is not known which of them is 1. The
            message names line and value; the caller adds file and column.
    """
    key_of = normalised_cells(cells)
    values = distinct_values(cells, key_of)
    if not values:
        raise all_missing(cells, "0 and 1")
    pair = _pair(values, positive)
    if len(values) == 1:
        raise DataError(_one_class(values, cells, key_of))
    if len(values) > 2 or pair is None:
        raise DataError(_no_classes(values, lines, pair))
    one, zero = pair
    numbers = encode_cells(cells, key_of, {one: 1.0, zero: 0.0})
    return Label(name, numbers, (values[zero].spelling, values[one].spelling))


def reason_for_no_label(name: str, cells: Sequence[str]) -> str | None:
    """Return why a column that the user did not name as a label cannot be one: it has no name or a
    name such as `split`, or it numbers the rows. None if there is no such reason."""
    if not name.strip() or name.startswith("Unnamed:"):
        return "it has no name, as an index of rows"
    if name.strip().casefold() in _NO_LABELS:
        return "its name says that it is none"
    numbers = [parse_number(cell) for cell in cells[:3]]
    if len(cells) > 2 and numbers in ([0, 1, 2], [1, 2, 3]):
        start = int(numbers[0] or 0)
        if all(parse_number(cell) == k for k, cell in enumerate(cells, start)):
            return "it numbers the rows"
    return None


def normalised_cells(cells: Sequence[str]) -> dict[str, str | None]:
    """Map every distinct cell to its normalised text (`normalise`), or to None if it is missing."""
    texts = {cell: " ".join(cell.split()).casefold() for cell in set(cells)}
    missing = MISSING - {"-"} if "+" in texts.values() else MISSING
    return {cell: None if text in missing else normalise(text) for cell, text in texts.items()}


def normalise(text: str) -> str:
    """Normalise a cell, so that equal values have equal texts: `1`, `1.0` and `+1` are one number;
    other texts are compared in lower case and with single spaces."""
    number = parse_number(text)
    return " ".join(text.split()).casefold() if number is None else repr(number + 0.0)  # no -0.0


def parse_number(text: str) -> float | None:
    """Parse a number with a decimal point or comma; None if the text is not a number, or NaN."""
    # Python reads underscores in numbers, but `1_2` is another class than `12`.
    if "_" in text:
        return None
    whole, comma, fraction = text.strip().partition(",")
    try:
        value = float(f"{whole}.{fraction}" if comma and len(fraction) < 3 else text)
    except ValueError:
        return None
    return None if math.isnan(value) else value


def distinct_values(
    cells: Sequence[str], key_of: Mapping[str, str | None]
) -> dict[str, DistinctValue]:
    """Collect the distinct values of a column, without missing ones, in the order of their rows.

    Args:
        cells: the cells of the column.
        key_of: the normalised text of every cell (`normalised_cells`).
    """
    values: dict[str, DistinctValue] = {}
    counts: dict[str, int] = {}
    first: dict[str, int] = {}
    for row, cell in enumerate(cells):
        counts[cell] = counts.get(cell, 0) + 1
        first.setdefault(cell, row)
    for cell, row in first.items():
        key = key_of[cell]
        if key is not None:
            before = values.get(key, DistinctValue(cell.strip(), 0, row))
            values[key] = DistinctValue(before.spelling, before.count + counts[cell], before.row)
    return values


def encode_cells(
    cells: Sequence[str], key_of: Mapping[str, str | None], number_of: Mapping[str, float]
) -> tuple[float, ...]:
    """Convert the cells of a column to the numbers of their classes, NaN where missing."""
    numbers = {cell: math.nan if key is None else number_of[key] for cell, key in key_of.items()}
    return tuple(numbers[cell] for cell in cells)


def all_missing(cells: Sequence[str], expected: str) -> DataError:
    """Return the error of a column that has only missing values."""
    return DataError(
        f"got {len(cells)} missing values and no other, expected {expected} in some rows"
    )


def _pair(values: Mapping[str, DistinctValue], positive: str | None) -> tuple[str, str] | None:
    """Return the keys of class 1 and class 0 among the values, None if they are not known."""
    if positive is not None:
        one = normalise(positive)
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
    """Return the names that class 0 may have if class 1 is called `word`."""
    negated = [prefix + between + word for prefix in _NEGATIONS for between in ("", " ", "-", "_")]
    named = [_OPPOSITES[word]] if word in _OPPOSITES else []
    return [*named, *negated, *([word[:-1] + "-"] if word.endswith("+") else [])]


def _one_class(
    values: Mapping[str, DistinctValue], cells: Sequence[str], key_of: Mapping[str, str | None]
) -> str:
    ((key, value),) = values.items()
    other = {"0.0": "0 x 1", "1.0": "0 x 0"}.get(key, "no other")
    missing = {cell for cell in cells if key_of[cell] is None}
    spelt = f" (got as {', '.join(map(repr, sorted(missing)[:_SHOWN]))})" if missing else ""
    got = f"{value.count} x {value.spelling[:_LONGEST]} and {other}"
    return f"got {got}, {len(cells) - value.count} missing{spelt}, expected two classes"


def _no_classes(
    values: Mapping[str, DistinctValue], lines: Sequence[int], pair: tuple[str, str] | None
) -> str:
    """Return the error text of a column whose values are not two known classes."""
    if len(values) == 2:
        remedy = f"say `positive: {quoted(list(values.values())[1].spelling)}`, or the other"
        return f"got two values, {_some(values)}, expected to know which is class 1: {remedy}"
    classes = pair or tuple(key for key in values if key in ("0.0", "1.0"))
    numeric = all(_is_numeric(values[key].spelling) for key in classes)
    if not classes and not _is_numeric(next(iter(values.values())).spelling):
        classes, numeric = tuple(values)[:2], False
    wrong = next(value for key, value in values.items() if key not in classes)
    got = f"line {lines[wrong.row]}: got {quoted(wrong.spelling)}"
    if numeric and _is_numeric(wrong.spelling):
        return f"{got}, {_EXPECTED}; {_OTHER_TARGETS}"
    beside = " and ".join(quoted(values[key].spelling) for key in classes)
    count = f"{len(values)} different values in all"
    remedy = "leave a cell empty where its class is not known, or say `target: multiclass`"
    return f"{got} beside {beside}, {count}, expected two classes; {remedy}"


def _is_numeric(text: str) -> bool:
    """Return True if a cell is a number, with or without a qualifier (`>10`)."""
    return parse_number(text.lstrip(QUALIFIERS + " ")) is not None


def quoted(cell: str) -> str:
    """Quote a cell for an error message; a long cell is truncated."""
    return repr(cell if len(cell) <= _LONGEST else f"{cell[:_LONGEST]}...")


def _some(values: Mapping[str, DistinctValue]) -> str:
    shown = [quoted(value.spelling) for value in values.values()][:_SHOWN]
    return ", ".join(shown) + (f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else "")
