"""Decode image files of any mode; every kind of damage raises ValueError."""

import contextlib
import io
import struct
import warnings
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8
from PIL import Image

# What Pillow raises on damaged bytes, and on a header that claims an absurd size.
PILLOW_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, IndexError, OverflowError, struct.error,
    Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip


def decode_chip(encoded: bytes, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image of any mode to RGB; resize it to `size` (width, height) if it differs.

    Raises:
      ValueError: the bytes are not an image, or a damaged one, or one of an absurd size.
    """
    with _damage_as_value_error():
        image = Image.open(io.BytesIO(encoded)).convert("RGB")
        if size is not None and image.size != size:
            image = image.resize(size, Image.Resampling.BILINEAR)
        return np.asarray(image)


def read_header(encoded: bytes) -> tuple[tuple[int, int], str]:
    """Return an image's size (width, height) and mode without decoding its pixels.

    Raises:
      ValueError: as `decode_chip`.
    """
    with _damage_as_value_error():
        image = Image.open(io.BytesIO(encoded))
        return image.size, image.mode


@contextlib.contextmanager
def _damage_as_value_error() -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except PILLOW_ERRORS as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
