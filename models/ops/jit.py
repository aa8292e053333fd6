"""models.ops.jit"""

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)
Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
_Function = TypeVar("_Function", bound=Callable[..., Any])


@functools.cache
def _say_not_kept() -> None:
    log.info(
        "every process compiles anew: no folder to keep it in can be written, see NUMBA_CACHE_DIR"
    )


def kernel(function: _Function) -> _Function:
    """Compiled at its first call and kept on disk, where a folder for that can be written: beside
    the module, in the user's cache, or as `NUMBA_CACHE_DIR` says. NaN is not provided for: a caller
    looks at what comes out in the end."""
    compiled = numba.njit(nogil=True, fastmath=True, error_model="numpy")(function)
    try:
        compiled.enable_caching()
    except RuntimeError:  # numba's only word for it
        _say_not_kept()
    return cast(_Function, compiled)
