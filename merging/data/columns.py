"""Labels of a regression and of several classes: the cells of a column become numbers."""

import math
import re
from collections.abc import Iterable, Sequence

from merging.data.labels import (
    MISSING,
    QUALIFIERS,
    Label,
    keys_of,
    normalised,
    number_in,
    quoted,
    values_of,
)
from models.errors import DataError
from models.validation import one_of

_MOST_CLASSES = 100
_LONGEST = 100  # characters of a cell whose look is judged
_LARGEST = 3e38  # of float32
_MINUS = "\N{MINUS SIGN}"


def read_numbers(name: str, cells: Sequence[str], lines: Sequence[int]) -> Label:
    """Read a column of numbers as the label of a regression.

    Decimals have a point; a comma where no cell of the column has a point, and one of them shows
    that the comma cannot stand between thousands.

    Args:
        name: of the column, for the result.
        cells: the column's cells, one for each row.
        lines: where the rows begin in the file, for errors.

    Raises:
        DataError: a cell that is no finite number and not missing (a bound such as `>10`, a number
            with its unit, a word), or no two numbers that differ. The message names line and cell,
            and says what to do; file and column are the caller's.
    """
    written = {cell: cell.strip().replace(_MINUS, "-") for cell in cells}
    known = {cell: text for cell, text in written.items() if text.casefold() not in MISSING}
    if not known:
        counts = f"{len(cells)} missing values and no other"
        raise DataError(f"got {counts}, expected numbers in some rows")
    has_comma = _has_decimal_comma(known.values())
    found = {cell: _number(text, has_comma) for cell, text in known.items()}
    for cell, line in zip(cells, lines, strict=True):
        if cell in found and found[cell] is None:
            raise DataError(f"line {line}: got {quoted(cell.strip())}, {_why_no_number(cell)}")
    values = tuple(math.nan if (value := found.get(cell)) is None else value for cell in cells)
    if len(set(found.values())) < 2:
        count = sum(cell in known for cell in cells)
        shown = f"{count} x {quoted(next(iter(known.values())))} and no other number"
        raise DataError(f"got {shown}, {len(cells) - count} missing, expected some that differ")
    return Label(name, values)


def read_classes(
    name: str, cells: Sequence[str], lines: Sequence[int], order: Sequence[str] = ()
) -> Label:
    """Read a column of class names as the label of a multiclass task.

    Case and surrounding white space do not count. Without `order`, classes that are numbers come
    in their order, others by the alphabet.

    Args:
        name: of the column, for the result.
        cells: the column's cells, one for each row.
        lines: where the rows begin in the file, for errors.
        order: all classes by name, in the order in which they are numbered and answered; a cell
            that is one of them is no missing value, whatever it says.

    Raises:
        DataError: a cell that is none of `order`, a class of it that no row has, fewer than two
            classes or far too many. The message names line and cell; file and column are the
            caller's.
    """
    named = {normalised(word): word for word in order}
    key_of = keys_of(cells)
    key_of |= {cell: normalised(cell) for cell in key_of if normalised(cell) in named}
    values = values_of(cells, key_of)
    if not values:
        counts = f"{len(cells)} missing values and no other"
        raise DataError(f"got {counts}, expected the names of classes in some rows")
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
        found = f"got {len(keys)} classes ({shown}, ...), expected at most {_MOST_CLASSES}"
        raise DataError(f"{found}; numbers are `target: regression`")
    number_of = {key: float(k) for k, key in enumerate(keys)}
    numbers = {cell: math.nan if key is None else number_of[key] for cell, key in key_of.items()}
    spelt = tuple(named[key] if order else values[key].spelling for key in keys)
    return Label(name, tuple(numbers[cell] for cell in cells), spelt)


def _by_number(key: str) -> tuple[float, str]:
    """Numbers first, by value; then words, by the alphabet."""
    number = number_in(key)
    return (math.inf if number is None else number, key)


def _has_decimal_comma(texts: Iterable[str]) -> bool:
    """Whether the commas of a column are decimal: no cell has a point, and one comma at least does
    not stand as it would between thousands."""
    texts = list(texts)
    if any("." in text for text in texts):
        return False
    pairs = [text.lstrip("+-").partition(",") for text in texts if text.count(",") == 1]
    return any(
        len(fraction) != 3 or whole in ("", "0") or len(whole) > 3 for whole, _, fraction in pairs
    )


def _number(text: str, has_comma: bool) -> float | None:
    """The finite number that a cell says, or None."""
    if "_" in text:  # which Python would read
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
"""What to do about a cell that is no number, by its look; the first that fits counts."""


def _why_no_number(cell: str) -> str:
    """What was expected in place of a cell, and what to do about it."""
    text = cell.strip().replace(_MINUS, "-")[:_LONGEST]
    expected = "expected a finite number or a missing value"
    if abs(number_in(text) or 0) >= _LARGEST:
        remedy = f"numbers stay below {_LARGEST:g}: take another unit, or leave the cell empty"
        return f"{expected}; {remedy}"
    for look, remedy in _REMEDIES:
        if re.fullmatch(look, text, re.IGNORECASE | re.DOTALL):
            return f"{expected}; {remedy}"
    remedy = "classes are `target: multiclass`, and two of them need no `target`"
    return f"{expected}; {remedy}"
