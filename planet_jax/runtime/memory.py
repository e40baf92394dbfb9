"""How glibc allocates memory, as far as it can be set from inside the process."""

import contextlib
import ctypes
from typing import Any

M_ARENA_MAX = -8  # malloc.h


def limit_arenas() -> None:
    """Limit glibc to two heaps: of eight a core, XLA's and Orbax's threads fragment each.

    Huge pages can only be set from outside: GLIBC_TUNABLES=glibc.malloc.hugetlb=1.
    """
    _call("mallopt", M_ARENA_MAX, 2)


def trim() -> None:
    """Return free pages to the system; takes a few milliseconds."""
    _call("malloc_trim", 0)


def _call(name: str, *arguments: Any) -> None:
    with contextlib.suppress(AttributeError):  # another C library
        getattr(ctypes.CDLL(None), name)(*arguments)
