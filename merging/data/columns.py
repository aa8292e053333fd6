"""Labels of regression and multiclass tasks: reading the cells of a column as numbers."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from merging.data.labels import (
    MISSING,
    QUALIFIERS,
    Label,
    all_missing,
    distinct_values,
    encode_cells,
    normalise,
    normalised_cells,
    parse_number,
    quoted,
)
from models.errors import DataError
from models.validation import one_of

_MOST_CLASSES = 100
_LONGEST = 100  # characters of a cell whose look is judged
_LARGEST = 3e38  # of float32
_MINUS = "\N{MINUS SIGN}"


def read_numbers(name: str, cells: Sequence[str], lines: Sequence[int]) -> Label:
    """Read a column of numbers as the label of a regression.

    The decimal sign is a point. It is a comma if no cell of the column has a point and the comma of
    at least one cell cannot be a thousands separator.

    Args:
        name: the name of the column.
        cells: the cells of the column, one per row.
        lines: the line of the file at which every row begins, for error messages.

    Raises:
        DataError: a cell is neither a finite number nor missing (a bound such as `>10`, a number
            with its unit, a word), or all numbers are equal. The message names line and cell and a
            remedy; the caller adds file and column.
    """
    written = {cell: cell.strip().replace(_MINUS, "-") for cell in cells}
    known = {cell: text for cell, text in written.items() if text.casefold() not in MISSING}
    if not known:
        raise all_missing(cells, "numbers")
    has_comma = _has_decimal_comma(known.values())
    numbers = {cell: _number(text, has_comma) for cell, text in known.items()}
    for cell, line in zip(cells, lines, strict=True):
        if cell in numbers and numbers[cell] is None:
            raise DataError(f"line {line}: got {quoted(cell.strip())}, {_no_number(cell)}")
    values = tuple(math.nan if (value := numbers.get(cell)) is None else value for cell in cells)
    if len(set(numbers.values())) < 2:
        count = sum(cell in known for cell in cells)
        shown = f"{count} x {quoted(next(iter(known.values())))} and no other number"
        raise DataError(f"got {shown}, {len(cells) - count} missing, expected some that differ")
    return Label(name, values)


def logarithms(label: Label, lines: Sequence[int]) -> Label:
    """Return a label of positive numbers as their decimal logarithms.

    Args:
        label: of a regression (`read_numbers`).
        lines: the line of the file at which every row begins, for error messages.

    Raises:
        DataError: a number is zero or negative; the message names its line.
    """
    for value, line in zip(label.values, lines, strict=True):
        if value <= 0:
            remedy = "leave the cell empty, write the number to learn, or leave `scale` out"
            expected = f"expected a number above 0 (`scale: log10`); {remedy}"
            raise DataError(f"line {line}: got {value:g}, {expected}")
    return replace(label, values=tuple(map(_log10, label.values)))


def _log10(value: float) -> float:
    return value if math.isnan(value) else math.log10(value)


def read_classes(
    name: str, cells: Sequence[str], lines: Sequence[int], order: Sequence[str] = ()
) -> Label:
    """Read a column of class names as the label of a multiclass task.

    Case and surrounding white space are ignored.

    Args:
        name: the name of the column.
        cells: the cells of the column, one per row.
        lines: the line of the file at which every row begins, for error messages.
        order: the names of all classes, in the order of their numbers; a cell with one of these
            names is never a missing value. Empty takes the classes that occur, numbers in
            ascending order before words in alphabetical order.

    Raises:
        DataError: a cell is not in `order`, no row has a class of `order`, or the column has fewer
            than two or more than 100 classes. The message names line and cell; the caller adds file
            and column.
    """
    named = {normalise(word): word for word in order}
    key_of = normalised_cells(cells)
    key_of |= {cell: normalise(cell) for cell in key_of if normalise(cell) in named}
    values = distinct_values(cells, key_of)
    if not values:
        raise all_missing(cells, "the names of classes")
    if order:
        for key, value in values.items():
            if key not in named:
                expected = f"expected {one_of(value.spelling, order)} (`classes`), or nothing"
                raise DataError(
                    f"line {lines[value.row]}: got {quoted(value.spelling)}, {expected}"
                )
        if absent := [word for key, word in named.items() if key not in values]:
            raise DataError(f"got no row of class {quoted(absent[0])}, expected some (`classes`)")
    keys = tuple(named) if order else tuple(sorted(values, key=_by_number))
    if len(keys) < 2:
        (value,) = values.values()
        shown = f"{value.count} x {quoted(value.spelling)} and no other class"
        raise DataError(f"got {shown}, {len(cells) - value.count} missing, expected two at least")
    if len(keys) > _MOST_CLASSES:
        shown = ", ".join(quoted(value.spelling) for value in list(values.values())[:3])
        got = f"got {len(keys)} classes ({shown}, ...), expected at most {_MOST_CLASSES}"
        raise DataError(f"{got}; numbers are `target: regression`")
    numbers = encode_cells(cells, key_of, {key: float(k) for k, key in enumerate(keys)})
    return Label(name, numbers, tuple(named.get(key, values[key].spelling) for key in keys))


def _by_number(key: str) -> tuple[float, str]:
    """Sort key: numbers by value, then words in alphabetical order."""
    number = parse_number(key)
    return (math.inf if number is None else number, key)


def _has_decimal_comma(texts: Iterable[str]) -> bool:
    """Return True if the commas of a column are decimal signs: no cell has a point, and at least
    one comma cannot be a thousands separator."""
    texts = list(texts)
    if any("." in text for text in texts):
        return False
    pairs = [text.lstrip("+-").partition(",") for text in texts if text.count(",") == 1]
    return any(
        len(fraction) != 3 or whole in ("", "0") or len(whole) > 3 for whole, _, fraction in pairs
    )


def _number(text: str, has_comma: bool) -> float | None:
    """Parse a finite number that float32 can hold, or return None."""
    if "_" in text:  # float() accepts it
        return None
    try:
        value = float(text.replace(",", ".") if has_comma else text)
    except ValueError:
        return None
    return value + 0.0 if abs(value) < _LARGEST else None  # no -0.0


_NUMBER = r"[+-]?(?:[.,]\d+|\d[\d.,]*)(?:e[+-]?\d+)?"
_REMEDIES = (
    (
        rf"[{QUALIFIERS}\s]+{_NUMBER}.*",
        "a bound is no measured value: leave the cell empty, or write the number to learn",
    ),
    (
        rf"{_NUMBER}\s*(?:-|\N{{EN DASH}}|to|\.\.+|±|\+/?-)\s*{_NUMBER}",
        "a range, or a number with its error, is several: write the number to learn",
    ),
    (
        r"[+-]?[\d.,][\d.,_'\N{RIGHT SINGLE QUOTATION MARK}\s]*(?:e[+-]?\d+)?",
        "write decimals with a point, and nothing between thousands",
    ),
    (rf"{_NUMBER}\s*[x*·\N{{MULTIPLICATION SIGN}}]\s*10.*", "write powers of ten as in 1.2e-3"),
    (
        rf"{_NUMBER}\s*[^\W\d_].*|{_NUMBER}\s*[%‰°].*",
        "write the unit into `units`, and into the cell the number alone",
    ),
    (r"#.*", "a spreadsheet's error is no value: leave the cell empty"),
    (r".*\d.*", "write one number alone into the cell, or leave it empty"),
)
"""Remedies for a cell that is not a number, by a pattern of the cell; the first match counts."""


def _no_number(cell: str) -> str:
    """Return the end of the error text of a cell that is not a number: expectation and remedy."""
    text = cell.strip().replace(_MINUS, "-")[:_LONGEST]
    expected = "expected a finite number or a missing value"
    if abs(parse_number(text) or 0) >= _LARGEST:
        remedy = f"numbers stay below {_LARGEST:g}: take another unit, or leave the cell empty"
        return f"{expected}; {remedy}"
    for look, remedy in _REMEDIES:
        if re.fullmatch(look, text, re.IGNORECASE | re.DOTALL):
            return f"{expected}; {remedy}"
    remedy = "classes are `target: multiclass`, and two of them need no `target`"
    return f"{expected}; {remedy}"
