"""Compile functions with numba."""

from collections.abc import Callable
from typing import Any, TypeVar

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile a function without the GIL; keep its code on the disk if a folder can be written.

    numba writes beside the module, else below the home; it raises RuntimeError if neither can be.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}  # x / 0 as in numpy
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        return numba.njit(**options)(function)
