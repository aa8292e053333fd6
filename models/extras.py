"""Packages that only some functions need, imported when they are needed."""

import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType

from models.errors import GMergingError

EXTRAS: Mapping[str, Mapping[str, str]] = {
    "predict": {"pandas": "pandas", "pyarrow": "pyarrow", "tqdm": "tqdm"},
    "merging": {
        "matplotlib": "matplotlib",
        "ot": "pot",
        "pooch": "pooch",
        "requests": "requests",
        "sklearn": "scikit-learn",
        "tqdm": "tqdm",
        "yaml": "pyyaml",
    },
}
"""Packages of the extras that commands need, by import name: `predict` for those
who use models, `merging` for those who make them."""


class MissingPackageError(GMergingError, ImportError):
    """A package of an extra is not installed; the message says how to install it."""

    code = "package_missing"


def optional_package(name: str, purpose: str, extra: str) -> ModuleType:
    """Import a package, or one of its modules, that is in an extra of this one.

    Args:
        name: of the package or module.
        purpose: what needs it, for the message.
        extra: the extra that installs it.

    Raises:
        MissingPackageError: the package is not installed.
    """
    package = name.partition(".")[0]
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
    got = f"got no package {package} for {purpose}, expected the extra `{extra}`"
    raise MissingPackageError(f"{got}: {how_to_install(extra)}")


def how_to_install(extra: str) -> str:
    """Return the command that installs an extra."""
    return f'{sys.executable} -m pip install "g-merging[{extra}]", in a checkout -e ".[{extra}]"'
