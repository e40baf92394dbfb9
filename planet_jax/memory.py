"""Memory that is freed is given back: a long run stays as large as a short one."""

import contextlib
import ctypes

M_ARENA_MAX, M_MMAP_THRESHOLD = -8, -3  # glibc's malloc.h
ARENAS, OWN_PAGES = 2, 2**20


def give_back() -> None:
    """Asks glibc for few heaps, and for pages of their own for blocks of 1 MiB and more.

    By itself it keeps eight heaps a core, and lets blocks of up to 32 MiB lie in them. XLA's and
    Orbax's threads then leave holes of a weight's size in every heap, and a run keeps growing,
    though nothing leaks. Without glibc this does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):  # it is another libc
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(M_ARENA_MAX, ARENAS)
        mallopt(M_MMAP_THRESHOLD, OWN_PAGES)


def trim() -> None:
    """Gives back the free pages within the heaps; a few milliseconds."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
