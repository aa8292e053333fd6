import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import InvalidInputError
from models.names import MAX_NAME, check_distinct, check_labels, check_name, nearest_name
from tests.strategies import quick


@pytest.mark.parametrize("name", ["a", "7", "HIV-1_v2.1", "x" * MAX_NAME, "console", "com10"])
def test_valid_names_are_returned(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("", ""),
        ("a/b", "for example 'a_b'"),
        ("..", ""),
        ("a..b", "for example 'a.b'"),
        (".hidden", "for example 'hidden'"),
        ("a.", "for example 'a'"),
        ("x" * (MAX_NAME + 1), f"for example '{'x' * MAX_NAME}'"),
        ("häm", "for example 'ham'"),
        ("a\nb", "for example 'a_b'"),
    ],
)
def test_invalid_names_are_refused_with_a_valid_one(name: str, hint: str) -> None:
    with pytest.raises(InvalidInputError, match=r"got name .*, expected 1 to 64 letters") as error:
        check_name(name)
    assert str(error.value).endswith(hint or "at the end")


@pytest.mark.parametrize("name", ["con", "NUL", "com1.txt", "Lpt9"])
def test_devices_of_windows_are_refused(name: str) -> None:
    with pytest.raises(InvalidInputError, match="no file can have on Windows, expected another"):
        check_name(name)


@quick
@given(st.text(max_size=2 * MAX_NAME))
def test_the_nearest_name_is_empty_or_valid(name: str) -> None:
    nearest = nearest_name(name)
    assert not nearest or check_name(nearest) == nearest
    assert nearest_name(nearest) == nearest


def test_names_that_differ_in_case_alone_are_one_file() -> None:
    check_distinct(["a", "b", "ab"])
    with pytest.raises(InvalidInputError, match="got names 'Tox' and 'tOX', expected names that"):
        check_distinct(["a", "Tox", "tOX"])


def test_a_label_occurs_once() -> None:
    check_labels(["a", "A", "b"])
    with pytest.raises(InvalidInputError, match="got label name twice: 'a', 'b', expected"):
        check_labels(["a", "b", "a", "c", "b", "b"])
