"""Compile functions with numba."""

from collections.abc import Callable
from typing import Any, TypeVar

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile a function that runs without the GIL; cache its code on the disk if possible.

    numba writes the cache beside the module, else below the home folder. If neither can be written,
    numba raises RuntimeError.
    """
    options: dict[str, Any] = {"nogil": True}  # error_model="numpy" makes the warp 8% slower
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        return numba.njit(**options)(function)
