"""Names of models, tasks and labels: one rule for configurations, data and manifests.

The name of a task or an artifact is also a file name, so it must be valid on every file system.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator

from models.errors import InvalidInputError

MAX_NAME = 64
_NAME = re.compile(rf"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME - 1}}}(?<!\.)")
_RULE = (
    f"1 to {MAX_NAME} letters, digits, '.', '_' and '-', the first a letter or digit, no '..' and"
    " no '.' at the end"
)
_DEVICE = re.compile(r"(con|prn|aux|nul|com[1-9]|lpt[1-9])(\..*)?", re.IGNORECASE)
"""Names of devices on Windows, with any extension."""


def check_name(name: str) -> str:
    """Return the name of a task, an artifact or a setting if it is valid.

    Raises:
        InvalidInputError: it is not; the message suggests a valid name where there is one.
    """
    if _DEVICE.fullmatch(name):
        found = f"got name {name!a}, which no file can have on Windows"
        stem, dot, rest = name.partition(".")
        other = f"{stem}_task{dot}{rest}".rstrip(".")
        raise InvalidInputError(f"{found}, expected another, for example {other[:MAX_NAME]!a}")
    if _NAME.fullmatch(name):
        return name
    usable = nearest_name(name)
    hint = f", for example {usable!r}" if usable else ""
    raise InvalidInputError(f"got name {name[: 2 * MAX_NAME]!a}, expected {_RULE}{hint}")


Name = Annotated[str, AfterValidator(check_name)]
"""A field of a configuration or manifest that holds a name."""


def nearest_name(name: str) -> str:
    """Turn a name into a similar valid one; empty if no character can be used."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = re.sub(r"\.\.+", ".", re.sub(r"[^A-Za-z0-9._-]+", "_", plain))
    return plain.lstrip("._-")[:MAX_NAME].rstrip("._-")


def check_distinct(names: Iterable[str]) -> None:
    """Check that no two names differ in case alone: they would be one file on some systems.

    Raises:
        InvalidInputError: two do.
    """
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(name.casefold(), name)
        if other is not name:
            expected = "expected names that differ in more than case"
            raise InvalidInputError(f"got names {other!a} and {name!a}, {expected}")


def check_labels(labels: Iterable[str]) -> None:
    """Check that no label name occurs twice, as an answer is a table by label name.

    Raises:
        InvalidInputError: one does.
    """
    if twice := [label for label, count in Counter(labels).items() if count > 1]:
        names = ", ".join(map(ascii, twice))
        raise InvalidInputError(f"got label name twice: {names}, expected each once")
