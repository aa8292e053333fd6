"""Kinds of files of molecules, by the endings of their names."""

from pathlib import PurePath
from typing import Literal

from models.errors import InvalidInputError

FileKind = Literal["csv", "tsv", "smi", "sdf"]
InputKind = Literal[FileKind, "parquet"]
_KINDS: dict[str, FileKind] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".smi": "smi",
    ".smiles": "smi",
    ".cxsmiles": "smi",
    ".txt": "smi",
    ".sdf": "sdf",
    ".sd": "sdf",
    ".mol": "sdf",
}
_PARQUET_ENDINGS = (".parquet", ".pq")


def kind_of(name: str) -> FileKind:
    """Return the kind of a file by the suffix of its name, with or without `.gz`.

    Raises:
        InvalidInputError: the suffix is not known.
    """
    ending = PurePath(name.lower().removesuffix(".gz")).suffix
    if ending not in _KINDS:
        known = f"{', '.join(_KINDS)} (also with .gz), or `format`"
        raise InvalidInputError(f"got a file called {name[:80]!a}, expected an ending of {known}")
    return _KINDS[ending]


def kind_by_name(name: str) -> InputKind:
    """Return the kind of a file by the ending of its name or path.

    Raises:
        InvalidInputError: the ending is not known.
    """
    name = PurePath(name).name
    if PurePath(name).suffix.lower() in _PARQUET_ENDINGS:
        return "parquet"
    try:
        return kind_of(name)
    except InvalidInputError as error:
        message = str(error).replace("or `format`", f"{', '.join(_PARQUET_ENDINGS)}")
        raise InvalidInputError(f"{message}, or --input-format") from None
