"""Names of models, tasks and labels: one rule for configurations, data and manifests.

The name of a task or an artifact is also the name of a file, on every file system.
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
"""What Windows takes for a device, whatever follows the first full stop."""


def check_name(name: str) -> str:
    """The name of a task, an artifact or a setting, as it is. Raises InvalidInputError."""
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
"""A field of a configuration or manifest that holds such a name."""


def nearest_name(name: str) -> str:
    """A usable name that looks like the given one; empty if nothing of it can be used."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = re.sub(r"\.\.+", ".", re.sub(r"[^A-Za-z0-9._-]+", "_", plain))
    return plain.lstrip("._-")[:MAX_NAME].rstrip("._-")


def check_distinct(names: Iterable[str]) -> None:
    """Raises InvalidInputError: two names differ in case alone: one file on some systems."""
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(name.casefold(), name)
        if other is not name:
            expected = "expected names that differ in more than case"
            raise InvalidInputError(f"got names {other!a} and {name!a}, {expected}")


def check_labels(labels: Iterable[str]) -> None:
    """Raises InvalidInputError: a label name occurs twice. An answer is a table by label name."""
    if twice := [label for label, count in Counter(labels).items() if count > 1]:
        names = ", ".join(map(ascii, twice))
        raise InvalidInputError(f"got label name twice: {names}, expected each once")
