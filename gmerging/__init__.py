"""G-Merging: one graph neural network that does the work of many.

This package is the public face; `models`, `merging` and `service` are the rooms behind it. What it
names is imported on first use, so that `import gmerging` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gmerging.model import Model as Model
    from gmerging.model import load as load
    from gmerging.model import models as models
    from gmerging.own_models import merge as merge
    from gmerging.own_models import read_model as read_model
    from models.errors import GMergingError as GMergingError

_WHERE = {
    "GMergingError": "models.errors",
    "Model": "gmerging.model",
    "load": "gmerging.model",
    "merge": "gmerging.own_models",
    "models": "gmerging.model",
    "read_model": "gmerging.own_models",
}
"""The module of every public name."""

__all__ = ["GMergingError", "Model", "load", "merge", "models", "read_model"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_WHERE[name]), name)
    except ModuleNotFoundError as error:
        from models.extras import EXTRAS, MissingPackageError, how_to_install

        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS["merging"]:
            raise
        got = f"gmerging.{name}: got no package {EXTRAS['merging'][package]}"
        expected = f"expected the extra `merging`: {how_to_install('merging')}"
        raise MissingPackageError(f"{got}, {expected}") from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
