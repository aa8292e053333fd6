"""The two ways to run a compiled kernel."""

from collections.abc import Callable
from typing import Any

import pytest

Kernel = Callable[..., Any]
AsRun = Callable[[Kernel], Kernel]


@pytest.fixture(scope="session", params=["compiled", "python"])
def as_run(request: pytest.FixtureRequest) -> AsRun:
    """A kernel as numba compiles it, and as Python runs its source."""
    return lambda kernel: kernel if request.param == "compiled" else kernel.py_func
