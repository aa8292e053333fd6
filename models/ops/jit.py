"""Just-in-time compilation of numeric kernels."""

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
def _log_no_cache() -> None:
    log.info(
        "got no writable folder for compiled kernels, expected one, see NUMBA_CACHE_DIR; every"
        " process compiles them again"
    )


def kernel(function: _Function) -> _Function:
    """Compile a function with numba at its first call, for one core, without the interpreter lock.

    The machine code is cached on disk where a folder can be written: beside the module, in the
    user's cache, or in `NUMBA_CACHE_DIR`. Compiled with fast-math, so NaN and infinity inside a
    kernel are undefined; callers check the final answer for finite numbers.
    """
    compiled = numba.njit(nogil=True, fastmath=True, error_model="numpy")(function)
    try:
        compiled.enable_caching()
    except RuntimeError:  # what numba raises where no folder can be written
        _log_no_cache()
    return cast(_Function, compiled)
