"""Keeping a worker's memory flat under load, and the garbage collector away from what stays."""

import ctypes
import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)
# glibc's mallopt(3): names and numbers of <malloc.h>.
_ARENA_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -8, -3, -1


def limit_malloc_arenas() -> None:
    """Have the C library keep one heap, where it is glibc.

    Passes allocate tensors of ever other sizes. By default glibc moves the bound between its heaps
    and blocks of their own as it goes, and has a heap for each thread: under load a worker still
    grew after two minutes, by 16 % in these. With fixed bounds and one heap it comes, in steps, to
    what its largest passes need. A lower bound was flat from the start, but cost a quarter of the
    answers.
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


@contextmanager
def frozen_gc() -> Iterator[None]:
    """While this holds, the garbage collector does not look at what was there before.

    That is nearly all there is, torch's and RDKit's modules above all: it took the collector 0.1 s
    and more each time, under load every other second, in which nothing else was done. A fifth of
    the event loop's time, and the longest of the waits.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
