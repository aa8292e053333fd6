"""Fixtures for compiled kernels."""

from collections.abc import Callable
from typing import Any

import pytest

Kernel = Callable[..., Any]
AsRun = Callable[[Kernel], Kernel]


@pytest.fixture(scope="session", params=["compiled", "python"])
def as_run(request: pytest.FixtureRequest) -> AsRun:
    """Return a kernel as compiled by numba, or as the Python function that it was made from."""
    return lambda kernel: kernel if request.param == "compiled" else kernel.py_func
