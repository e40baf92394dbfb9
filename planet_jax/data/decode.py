"""Decode image files of any mode; every kind of damage raises ValueError."""

import contextlib
import io
import struct
import warnings
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

# Pillow's errors for damaged bytes, and for a header with an absurdly large size.
PILLOW_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, IndexError, OverflowError, struct.error,
    Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip


def decode_chip(encoded: bytes, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image of any mode to RGB, and resize it to `size` (width, height) if given.

    16-bit pixels, and floats between 0 and 1, are scaled to 8 bits.

    Raises:
      ValueError: the bytes are not an image, or the image is damaged, absurdly large, or of a depth
        that `_to_8_bits` refuses.
    """
    with _damage_as_value_error():
        image = _to_8_bits(Image.open(io.BytesIO(encoded))).convert("RGB")
        if size is not None and image.size != size:
            image = image.resize(size, Image.Resampling.BILINEAR)
        return np.asarray(image)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit pixels and floats between 0 and 1 to 8 bits.

    Pillow would clip 16-bit values at 255.

    Raises:
      ValueError: the pixels are other floats or 32-bit integers.
    """
    if image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):  # NaN fails both
            raise ValueError("its floats are not between 0 and 1: scale them")
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    if image.mode == "I":
        raise ValueError("its integers have 32 bits: scale them to 8 or 16")
    return image


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
    except UnidentifiedImageError as error:
        raise ValueError("not an image, or of an unknown format") from error
    except PILLOW_ERRORS as error:
        raise ValueError(str(error) or type(error).__name__) from error
