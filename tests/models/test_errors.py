import pytest

from models import errors
from models.errors import GMergingError, MoleculeError, did_you_mean


@pytest.mark.parametrize(
    ("name", "known", "prefix", "expected"),
    [
        ("taks", ["tasks", "router"], "", ", did you mean 'tasks'?"),
        ("TASKS", ["tasks"], "", ", did you mean 'tasks'?"),
        ("zzz", ["tasks", "router"], "", ""),
        ("x", [], "", ""),
        # the common prefix alone makes no likeness
        ("GMERGING_ZZZ", ["GMERGING_PORT"], "GMERGING_", ""),
        ("GMERGING_PROT", ["GMERGING_PORT"], "GMERGING_", ", did you mean 'GMERGING_PORT'?"),
    ],
)
def test_did_you_mean(name: str, known: list[str], prefix: str, expected: str) -> None:
    assert did_you_mean(name, known, prefix) == expected


def test_every_error_is_of_the_family_and_has_its_own_code() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, Exception) and kind is not MoleculeError
    ]
    assert all(issubclass(kind, GMergingError) for kind in kinds)
    codes = [kind.code for kind in kinds]
    assert len(set(codes)) == len(codes) > 5
    assert MoleculeError("dummy_atom", "got *").code == "dummy_atom"
