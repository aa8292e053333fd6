"""Settings of the C allocator and of the garbage collector for a server under load."""

import ctypes
import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)
# Parameters of glibc's mallopt(3), from <malloc.h>.
_ARENA_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -8, -3, -1


def limit_malloc_arenas() -> None:
    """Set glibc to one malloc arena and fixed thresholds; without glibc, do nothing.

    Passes allocate tensors of varying sizes. By default glibc has an arena per thread and adapts
    its mmap threshold: under load a worker's memory grew by 16 % in two minutes and was still
    growing. With one arena and fixed thresholds it reaches, in steps, what the largest passes need.
    A lower mmap threshold kept it flat from the start, but cost a quarter of the throughput.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        log.debug("this C library has no mallopt")
        return
    for parameter, value in (
        (_ARENA_MAX, 1),
        (_MMAP_THRESHOLD, 32 * 1024**2),
        (_TRIM_THRESHOLD, 64 * 1024**2),
    ):
        mallopt(parameter, value)


def trim_malloc() -> None:
    """Give free pages of glibc's heap back to the system; without glibc, do nothing.

    Passes of a long run leave holes between what lives on, into which later ones do not fit: what
    is in use stays the same, and the heap grows on.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        log.debug("this C library has no malloc_trim")


@contextmanager
def frozen_gc() -> Iterator[None]:
    """Exclude all existing objects from garbage collection until the end of the `with` block.

    Most objects, mainly of torch's and RDKit's modules, live as long as the process. Traversing
    them stopped the event loop for 0.1 s or more every other second under load, a fifth of its
    time.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
