"""Settings of glibc's memory allocation that a process can change itself."""

import contextlib
import ctypes


def limit_arenas() -> None:
    """Limit glibc to one heap; by default, threads of XLA and Orbax fragment eight per core.

    Only in this heap can GLIBC_TUNABLES keep the memory of a step (docs/getting-started.md).
    """
    _call("mallopt", -8, 1)  # M_ARENA_MAX of malloc.h


def trim() -> None:
    """Return free pages to the system; takes a few milliseconds."""
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> None:
    with contextlib.suppress(AttributeError):  # another C library
        getattr(ctypes.CDLL(None), name)(*arguments)
