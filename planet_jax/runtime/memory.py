"""How glibc is to hand out memory: in large pages, and back again."""

import contextlib
import ctypes
import os
import sys

# XLA takes hundreds of megabytes anew for every step on a CPU, and Linux clears them page by page:
# pages of 2 MiB instead of 4 KiB save an eighth of a step. Of heaps glibc keeps eight a core by
# itself, in each of which XLA's and Orbax's threads would leave holes of a weight's size.
TUNABLES = "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=2"


def tune() -> None:
    """Begins this process anew with `TUNABLES`, which glibc reads at its start alone.

    Not where GLIBC_TUNABLES is set already; a libc that is not glibc does not look.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = TUNABLES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def trim() -> None:
    """Gives back the free pages within the heaps; a few milliseconds."""
    with contextlib.suppress(OSError, AttributeError):  # it is another libc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
