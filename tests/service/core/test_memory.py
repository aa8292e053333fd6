"""Settings of the allocator and the garbage collector: what glibc is told, and what is frozen."""

import ctypes
import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from service.core.memory import frozen_gc, limit_malloc_arenas, trim_malloc

ROOT = Path(__file__).parents[3]
THREADS = """
import ctypes, re, sys, threading
from service.core.memory import limit_malloc_arenas

if sys.argv[1] == "limited":
    limit_malloc_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
ready = threading.Barrier(5)

def allocate():
    libc.malloc(ctypes.c_size_t(10_000))
    ready.wait()

threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
ready.wait()
sys.stdout.flush()
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
libc.fdopen.restype = ctypes.c_void_p
libc.fflush.argtypes = [ctypes.c_void_p]
stream = libc.fdopen(1, b"w")
libc.malloc_info(0, stream)
libc.fflush(stream)
"""
has_glibc = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="needs glibc"
)


class Node:
    """An object of a reference cycle, which only the garbage collector frees."""

    def __init__(self) -> None:
        self.itself = self


def arenas(mode: str) -> int:
    """Count the malloc arenas of a new process in which four threads allocate at the same time."""
    tuned = {"GLIBC_TUNABLES", "MALLOC_ARENA_MAX"}
    environment = {name: value for name, value in os.environ.items() if name not in tuned}
    command = [sys.executable, "-c", THREADS, mode]
    found = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return found.stdout.count("<heap nr=")


@has_glibc
def test_threads_share_one_arena() -> None:
    assert arenas("limited") == 1
    assert arenas("default") > 1  # so that the limit is what the first line sees


def test_glibc_gets_documented_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []

    class Library:
        def mallopt(self, parameter: int, value: int) -> int:
            calls.append((parameter, value))
            return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    limit_malloc_arenas()
    # M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of <malloc.h>
    assert calls == [(-8, 1), (-3, 32 * 2**20), (-1, 64 * 2**20)]


def no_function(name: None) -> object:
    return object()


def no_library(name: None) -> object:
    raise OSError("no such library")


@pytest.mark.parametrize("load", [no_function, no_library])
def test_other_c_libraries_are_left_as_they_are(
    load: Callable[[None], object],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", load)
    with caplog.at_level("DEBUG", logger="service.core.memory"):
        limit_malloc_arenas()
    assert caplog.messages == ["this C library has no mallopt"]


def test_existing_objects_are_not_collected_inside_the_block() -> None:
    old = Node()
    watched = weakref.ref(old)
    del old
    with frozen_gc():
        new = Node()
        later = weakref.ref(new)
        del new
        gc.collect()
        assert watched() is not None
        assert later() is None
    gc.collect()
    assert watched() is None


@frozen_gc()
def fail_frozen(error: type[BaseException]) -> None:
    """Raise an error while objects are frozen."""
    assert gc.get_freeze_count() > 0
    raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_objects_are_unfrozen_after_errors(error: type[BaseException]) -> None:
    with pytest.raises(error):
        fail_frozen(error)
    assert gc.get_freeze_count() == 0


HOLES = """
import ctypes, re
from pathlib import Path
from service.core.memory import limit_malloc_arenas, trim_malloc

def resident() -> int:
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

limit_malloc_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
blocks = [libc.malloc(ctypes.c_size_t(1 << 20)) for _ in range(64)]
for block in blocks:
    ctypes.memset(block, 1, 1 << 20)
keep = libc.malloc(ctypes.c_size_t(1 << 20))  # on top, so that the heap cannot shrink
for block in blocks:
    libc.free(block)
before = resident()
trim_malloc()
print(before - resident())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_holes_of_the_heap_are_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HOLES], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 60 * 1024


def test_another_c_library_has_nothing_to_trim(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    with caplog.at_level("DEBUG"):
        trim_malloc()
    assert caplog.messages == ["this C library has no malloc_trim"]
