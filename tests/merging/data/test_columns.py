"""Columns of numbers and of classes, as users write them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merging.data.columns import logarithms, read_classes, read_numbers
from merging.data.labels import MISSING
from models.errors import DataError

NAN = math.nan


def numbers(cells: list[str]) -> list[float]:
    return list(read_numbers("y", cells, range(2, len(cells) + 2)).values)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1.5", " -2 ", "3e-2", "+4"], [1.5, -2, 0.03, 4]),
        (["1.5", "", "NA", "n.d.", "-", "2"], [1.5, NAN, NAN, NAN, NAN, 2]),
        (["0,5", "1,25", "-3,125"], [0.5, 1.25, -3.125]),
        (["0,125", "2"], [0.125, 2]),
        (["1234,567", "2"], [1234.567, 2]),
        (["\N{MINUS SIGN}5.2", "1"], [-5.2, 1]),
        (["0", "1", "0"], [0, 1, 0]),
    ],
)
def test_numbers_are_read(cells: list[str], expected: list[float]) -> None:
    assert numbers(cells) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("missing", sorted(MISSING))
def test_every_spelling_of_a_missing_value(missing: str) -> None:
    assert numbers(["1", f" {missing.upper()} ", "2"]) == pytest.approx([1, NAN, 2], nan_ok=True)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["1.5", ">10"], "line 3: got '>10', expected a finite number or a missing value; a bound"),
        (["1.5", "<= 0.3"], "line 3: got '<= 0.3', expected a finite number"),
        (["1.5", "~2"], "leave the cell empty, or write the number to learn"),
        (
            ["1.5", "5 uM"],
            "got '5 uM', expected a finite number or a missing value; write the unit",
        ),
        (["1.5", "inf"], "line 3: got 'inf', expected a finite number"),
        (["1e39", "1"], "line 2: got '1e39', expected a finite number"),
        (
            ["1.5", "1,234"],
            "line 3: got '1,234', expected a finite number or a missing value; write",
        ),
        (["1,234", "5,678"], "line 2: got '1,234'"),
        (["1,234,567", "2"], "line 2: got '1,234,567'"),
        (["1_000", "2"], "line 2: got '1_000'"),
        (
            ["1.5", "high"],
            "line 3: got 'high', expected a finite number or a missing value; classes",
        ),
        (["1.5", "\N{MINUS SIGN}3.1 mg"], "number or a missing value; write the unit into `units`"),
        (
            ["1.5", "12%"],
            "line 3: got '12%', expected a finite number or a missing value; write the",
        ),
        (["1.5", ">= 5 uM"], "missing value; a bound is no measured value: leave the cell empty"),
        (["1.5", "3-5"], "missing value; a range, or a number with its error, is several: write"),
        (["1.5", "3.1 ± 0.2"], "missing value; a range, or a number with its error, is several"),
        (["1.5", "1'234.5"], "missing value; write decimals with a point, and nothing between"),
        (["1.5", "1 234.5"], "missing value; write decimals with a point, and nothing between"),
        (["1.5", "1.2x10^-3"], "missing value; write powers of ten as in 1.2e-3"),
        (["1.5", "#DIV/0!"], "missing value; a spreadsheet's error is no value: leave the cell"),
        (["1.5", "2023-01-05"], "missing value; write one number alone into the cell, or leave"),
        (["1.5", "-inf"], "missing value; numbers stay below 3e+38: take another unit, or leave"),
        (["1.5", "high, 3rd"], "missing value; write one number alone into the cell"),
        (["1.5", "high, really"], "missing value; classes are `target: multiclass`"),
        (["", "NA"], "got 2 missing values and no other, expected numbers in some rows"),
        (["5.2", "", "5.20"], "got 2 x '5.2' and no other number, 1 missing, expected some that"),
    ],
)
def test_what_is_no_number_is_refused_by_line(cells: list[str], message: str) -> None:
    with pytest.raises(DataError) as refused:
        numbers(cells)
    assert message in str(refused.value)


@given(st.lists(st.floats(-1e30, 1e30) | st.none(), min_size=1, max_size=12))
def test_numbers_come_back_as_they_are_written(values: list[float | None]) -> None:
    cells = ["" if value is None else repr(value) for value in values]
    if len({value for value in values if value is not None}) < 2:
        with pytest.raises(DataError):
            numbers(cells)
        return
    for value, read in zip(values, numbers(cells), strict=True):
        assert (value is None and math.isnan(read)) or read == value


def classes(cells: list[str], order: tuple[str, ...] = ()) -> tuple[list[float], tuple[str, ...]]:
    label = read_classes("phase", cells, range(2, len(cells) + 2), order)
    return list(label.values), label.classes


@pytest.mark.parametrize(
    ("cells", "order", "values", "names"),
    [
        (["low", "High", "mid", "high "], (), [1, 0, 2, 0], ("High", "low", "mid")),
        (["10", "2", "", "2.0"], (), [1, 0, NAN, 0], ("2", "10")),
        (["b", "a"], (), [1, 0], ("a", "b")),
        (["HIGH", "low", "NA"], ("low", "high"), [1, 0, NAN], ("low", "high")),
        (["none", "some", "?"], ("none", "some"), [0, 1, NAN], ("none", "some")),
        (["1", "3", "2"], ("3", "2", "1"), [2, 0, 1], ("3", "2", "1")),
        (["1_2", "12", "1_2"], (), [1, 0, 1], ("12", "1_2")),
    ],
)
def test_classes_are_read(
    cells: list[str], order: tuple[str, ...], values: list[float], names: tuple[str, ...]
) -> None:
    found, named = classes(cells, order)
    assert found == pytest.approx(values, nan_ok=True)
    assert named == names


@pytest.mark.parametrize(
    ("cells", "order", "message"),
    [
        (
            ["low", "hgih"],
            ("low", "high"),
            "line 3: got 'hgih', expected one of low, high, did you mean 'high'? (`classes`)",
        ),
        (["low", "high"], ("low", "mid", "high"), "got no row of class 'mid', expected some"),
        (["a", "A ", ""], (), "got 2 x 'a' and no other class, 1 missing, expected two at least"),
        (["a", "a"], ("a", "b"), "got no row of class 'b'"),
        (["", "?"], (), "got 2 missing values and no other, expected the names of classes"),
        (
            [f"{k}.5" for k in range(101)],
            (),
            "got 101 classes ('0.5', '1.5', '2.5', ...), expected at most 100; numbers are `target",
        ),
    ],
)
def test_what_are_no_classes_is_refused(
    cells: list[str], order: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError) as refused:
        classes(cells, order)
    assert message in str(refused.value)


@given(st.permutations(["b", "a", "c", "a"]))
def test_the_order_of_rows_does_not_number_the_classes(cells: list[str]) -> None:
    values, names = classes(cells)
    assert names == ("a", "b", "c")
    assert [names[int(value)] for value in values] == cells


def test_numbers_become_logarithms() -> None:
    label = read_numbers("t", ["100", "", "0.01"], [2, 3, 4])
    found = logarithms(label, [2, 3, 4])
    assert found.name == "t"
    assert [found.values[0], found.values[2]] == [2.0, -2.0]
    assert math.isnan(found.values[1])
    for cell in ("0", "-3"):
        with pytest.raises(DataError, match=rf"line 3: got {cell}, expected a number above 0"):
            logarithms(read_numbers("t", ["100", cell], [2, 3]), [2, 3])
