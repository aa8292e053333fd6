"""Kernels where compiled code cannot be cached."""

import numpy as np
import pytest
from numba.core.registry import CPUDispatcher

from models.ops.jit import kernel


def twice(values: np.ndarray) -> np.ndarray:
    return 2 * values


def test_kernel_is_compiled_where_it_cannot_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a user with no home and no right to write beside the module."""

    def refuse(_: CPUDispatcher) -> None:
        raise RuntimeError("cannot cache function 'twice': no locator available for file")

    monkeypatch.setattr(CPUDispatcher, "enable_caching", refuse)
    assert kernel(twice)(np.ones(3, np.float32)).tolist() == [2, 2, 2]
