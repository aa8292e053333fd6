"""Packages that only some functions need, imported when they are needed."""

from importlib import import_module
from types import ModuleType

from models.errors import GMergingError


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
    raise MissingPackageError(f'{got}: pip install "g-merging[{extra}]"')
