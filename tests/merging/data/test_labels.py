import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merging.data.labels import MISSING, read_label, reason_for_no_label
from models.errors import DataError

NAN = math.nan


def read(cells: list[str], positive: str | None = None) -> list[float]:
    return list(read_label("y", cells, range(2, len(cells) + 2), positive).values)


@pytest.mark.parametrize(
    ("cells", "expected", "one", "zero"),
    [
        (["0", "1", "1"], [0, 1, 1], "1", "0"),
        ([" 1 ", "0.0", "1.0", "+1", "-0", "1e0"], [1, 0, 1, 1, 0, 1], "1", "0.0"),
        (["1,0", "0,0"], [1, 0], "1,0", "0,0"),
        (["-1", "1", "-1.0", ""], [0, 1, 0, NAN], "1", "-1"),
        (["Active", "inactive", "ACTIVE", "NA"], [1, 0, 1, NAN], "Active", "inactive"),
        (["No", "yes", " YES "], [0, 1, 1], "yes", "No"),
        (["y", "n"], [1, 0], "y", "n"),
        (["True", "FALSE", "true"], [1, 0, 1], "True", "FALSE"),
        (["t", "F"], [1, 0], "t", "F"),
        (["negative", "Positive"], [0, 1], "Positive", "negative"),
        (["non-toxic", "toxic"], [0, 1], "toxic", "non-toxic"),
        (["Toxic", "Nontoxic"], [1, 0], "Toxic", "Nontoxic"),
        (["not  toxic", "toxic"], [0, 1], "toxic", "not  toxic"),
        (["inhibitor", "Non Inhibitor"], [1, 0], "inhibitor", "Non Inhibitor"),
        (["soluble", "insoluble"], [1, 0], "soluble", "insoluble"),
        (["unstable", "stable"], [0, 1], "stable", "unstable"),
        (["+", "-", "-"], [1, 0, 0], "+", "-"),
        (["BBB-", "BBB+"], [0, 1], "BBB+", "BBB-"),
        (["decoy", "active"], [0, 1], "active", "decoy"),
    ],
)
def test_two_classes_are_read(cells: list[str], expected: list[float], one: str, zero: str) -> None:
    label = read_label("y", cells, range(2, len(cells) + 2))
    assert label.values == pytest.approx(expected, nan_ok=True)
    assert label.classes == (zero, one)


@pytest.mark.parametrize("missing", sorted(MISSING))
def test_every_spelling_of_a_missing_value(missing: str) -> None:
    cells = ["1", missing.upper(), "0", f" {missing} "]
    assert read(cells) == pytest.approx([1, NAN, 0, NAN], nan_ok=True)


@pytest.mark.parametrize(
    ("cells", "positive", "expected"),
    [
        (["high", "low", "High"], "HIGH", [1, 0, 1]),
        (["high", "low", "?"], "low", [0, 1, NAN]),
        (["2", "1"], "2", [1, 0]),
        (["2.0", "1.0"], "2", [1, 0]),
        (["0", "1"], "0", [1, 0]),
        (["yes", "no"], "no", [0, 1]),
    ],
)
def test_positive_may_be_said(cells: list[str], positive: str, expected: list[float]) -> None:
    assert read(cells, positive) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (
            ["5.23", "4.88", "5.02"],
            "line 2: got '5.23', expected 0, 1 or a missing value; regression",
        ),
        (["0", "100", "37"], "line 3: got '100', expected 0, 1"),
        (["0", "1", "", "2"], "line 5: got '2', expected 0, 1 or a missing value; regression"),
        (["1", "0", "-1"], "line 4: got '-1', expected 0, 1"),
        (["1", "0", ">10"], "line 4: got '>10', expected 0, 1 or a missing value"),
        (["0", "1", "inf"], "line 4: got 'inf', expected 0, 1"),
        (["7,5", "0,2", "1,5"], "line 2: got '7,5', expected 0, 1"),
        (["1", "0", "maybe"], "line 4: got 'maybe' beside '1' and '0', 3 different values in all"),
        (["yes", "no", "maybe"], "line 4: got 'maybe' beside 'yes' and 'no'"),
        (
            ["Inconclusive", "active", "inactive"],
            "line 2: got 'Inconclusive' beside 'active' and 'inactive'",
        ),
        (["yes", "no", "1"], "line 4: got '1' beside 'yes' and 'no'"),
        (
            ["aspirin", "ibuprofen", "morphine"],
            "line 4: got 'morphine' beside 'aspirin' and 'ibuprofen'",
        ),
        (
            ["high", "low"],
            "'high', 'low', expected to know which is class 1: say `positive: 'low'`",
        ),
        (["1", "2"], "got two values, '1', '2', expected to know which is class 1"),
        (["0", "100"], "got two values, '0', '100', expected to know"),
        (["1"] * 40, "got 40 x 1 and 0 x 0, 0 missing, expected two classes"),
        (["0", "", "0"], "got 2 x 0 and 0 x 1, 1 missing (got as ''), expected two classes"),
        (
            ["toxic", "none"],
            "got 1 x toxic and no other, 1 missing (got as 'none'), expected two classes",
        ),
        (["", "NA"], "got 2 missing values and no other, expected 0 and 1"),
    ],
)
def test_what_is_no_pair_of_classes_is_refused_by_line(cells: list[str], message: str) -> None:
    with pytest.raises(DataError) as refused:
        read(cells)
    assert message in str(refused.value)


def test_a_positive_value_that_is_not_there_is_refused() -> None:
    with pytest.raises(DataError, match="got 'high', 'low', expected 'hgih' among them"):
        read(["high", "low"], "hgih")
    with pytest.raises(DataError, match="line 4: got 'middle' beside"):
        read(["high", "low", "middle"], "high")


@given(st.lists(st.text(max_size=3) | st.sampled_from(["0", "1", "yes", "no", "NA"]), max_size=12))
def test_a_column_is_read_as_0_1_and_missing_or_refused(cells: list[str]) -> None:
    try:
        label = read_label("y", cells, range(2, len(cells) + 2))
    except DataError:
        return
    assert len(label.values) == len(cells)
    assert {value for value in label.values if not math.isnan(value)} == {0.0, 1.0}
    ones = {cell.strip() for cell, value in zip(cells, label.values, strict=True) if value == 1}
    assert label.classes[1] in ones


@pytest.mark.parametrize(
    ("name", "cells", "reason"),
    [
        ("", ["0", "1"], "no name"),
        ("Unnamed: 0", ["0", "1"], "no name"),
        ("Split", ["0", "1", "0"], "its name"),
        ("fold", ["0", "1", "0"], "its name"),
        ("no", ["0", "1", "2", "3"], "numbers the rows"),
        ("no", ["1", "2", "3"], "numbers the rows"),
        ("active", ["0", "1", "1"], None),
        ("active", ["0", "1", "2", "1"], None),
        ("active", [], None),
    ],
)
def test_columns_that_nobody_named(name: str, cells: list[str], reason: str | None) -> None:
    found = reason_for_no_label(name, cells)
    assert reason in str(found) if reason else found is None


def test_a_long_cell_is_cut_in_the_error() -> None:
    with pytest.raises(DataError) as refused:
        read(["a", "b" * 9, "text " * 1000])
    assert "got 'text text" in str(refused.value)
    assert len(str(refused.value)) < 300
