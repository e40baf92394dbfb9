"""Compiled kernels of `augment.render`: shrink by area, sample bilinearly, look up the lighting.

The kernels compute in integers. The fractional bits are POSITION_BITS in a coordinate, SHARE_BITS
in a bilinear weight, and AREA_BITS in a pixel of `shrink_by_area`.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8, UInt16

from planet_jax.compiled import compiled

POSITION_BITS, SHARE_BITS, AREA_BITS = 24, 11, 6
LEVELS = 1020  # steps of the lighting table, each a quarter of a uint8 level


def _logit(p: np.ndarray) -> Float[np.ndarray, " levels"]:
    p = p.clip(1e-7, 1 - 1e-7)
    return np.log(p / (1 - p)).astype(np.float32)


LOGIT = _logit(np.linspace(0, 1, LEVELS + 1))


def lighting_tables(
    brightness: Float[np.ndarray, " n"], contrast: Float[np.ndarray, " n"]
) -> UInt8[np.ndarray, "n levels"]:
    """Return each chip's output level for every quarter level of input.

    The rule is fastai's, in logit space: sigmoid((logit + brightness) * contrast).
    """
    logit = (LOGIT + brightness[:, None].astype(np.float32)) * contrast[:, None].astype(np.float32)
    return (255 / (1 + np.exp(-logit)) + np.float32(0.5)).astype(np.uint8)


@compiled
def shrink_by_area(
    chips: UInt8[np.ndarray, "n h w c"], rows: Int[np.ndarray, " m"], height: int, width: int
) -> UInt16[np.ndarray, "m height width c"]:
    """Average chips[rows] over torch's adaptive pooling windows; the unit is 2**-AREA_BITS levels.

    Window i of `height` covers the rows from floor(i h / height) to ceil((i + 1) h / height).
    """
    _, h, w, channels = chips.shape
    out = np.empty((len(rows), height, width, channels), np.uint16)
    for k in range(len(rows)):
        chip = chips[rows[k]]
        for i in range(height):
            top, bottom = i * h // height, -(-(i + 1) * h // height)
            for j in range(width):
                left, right = j * w // width, -(-(j + 1) * w // width)
                area = (bottom - top) * (right - left)
                for c in range(channels):
                    total = 0
                    for y in range(top, bottom):
                        for x in range(left, right):
                            total += chip[y, x, c]
                    out[k, i, j, c] = ((total << AREA_BITS) + area // 2) // area
    return out


@compiled
def sample_bilinear(
    source: np.ndarray,
    rows: np.ndarray,
    matrices: np.ndarray,
    tables: np.ndarray,
    out: np.ndarray,
    places: np.ndarray,
    pixel_bits: int,
) -> None:
    """Render source[rows[k]] into out[places[k]], for every k.

    Args:
      source: uint8 or uint16 [N, h, w, 3], with `pixel_bits` fractional bits.
      rows, places: indices [m] into `source`, and into `matrices`, `tables` and `out`.
      matrices: float64 [n, 2, 3], from output to input coordinates.
      tables: uint8 [n, levels], as `lighting_tables` returns them.
      out: uint8 [n, size, size, 3], written in place.
    """
    _, height, width, _ = source.shape
    size = out.shape[1]
    pixels, flat_out = source.reshape(len(source), -1), out.reshape(len(out), -1)
    one = np.uint64(1 << SHARE_BITS)
    to_quarter_levels = np.uint64(2 * SHARE_BITS + pixel_bits - 2)
    half_level = np.uint64(1) << (to_quarter_levels - np.uint64(1))
    unit, half_share = 1 << POSITION_BITS, 1 << (POSITION_BITS - SHARE_BITS - 1)
    step, half_w, half_h = 2 / max(size - 1, 1), (width - 1) / 2 * unit, (height - 1) / 2 * unit
    for k in range(len(rows)):
        chip, m = pixels[rows[k]], matrices[places[k]]
        table, target = tables[places[k]], flat_out[places[k]]
        x_step, y_step = np.int64(m[0, 0] * step * half_w), np.int64(m[1, 0] * step * half_h)
        # numba checks signed indices for negative values, which would cost more than the rest.
        at = np.uint64(0)
        for i in range(size):
            y_out = i * step - 1
            x = np.int64((m[0, 1] * y_out + m[0, 2] - m[0, 0] + 1) * half_w) + half_share
            y = np.int64((m[1, 1] * y_out + m[1, 2] - m[1, 0] + 1) * half_h) + half_share
            for _ in range(size):
                left, top = x >> POSITION_BITS, y >> POSITION_BITS
                right, bottom = left + 1, top + 1
                if left < 0 or top < 0 or right >= width or bottom >= height:
                    left, right = _reflect(left, width), _reflect(right, width)
                    top, bottom = _reflect(top, height), _reflect(bottom, height)
                right_share = np.uint64(x >> (POSITION_BITS - SHARE_BITS)) & (one - np.uint64(1))
                lower_share = np.uint64(y >> (POSITION_BITS - SHARE_BITS)) & (one - np.uint64(1))
                left_share, upper_share = one - right_share, one - lower_share
                upper_left = np.uint64((top * width + left) * 3)
                upper_right = np.uint64((top * width + right) * 3)
                lower_left = np.uint64((bottom * width + left) * 3)
                lower_right = np.uint64((bottom * width + right) * 3)
                for channel in range(3):
                    c = np.uint64(channel)
                    upper = chip[upper_left + c] * left_share + chip[upper_right + c] * right_share
                    lower = chip[lower_left + c] * left_share + chip[lower_right + c] * right_share
                    level = upper * upper_share + lower * lower_share + half_level
                    target[at + c] = table[level >> to_quarter_levels]
                at += np.uint64(3)
                x += x_step
                y += y_step


@compiled
def _reflect(index: Any, size: Any) -> Any:
    """Reflect an index about the centers of the edge pixels: ... 2 1 | 0 1 2 ... n-1 | n-2 ..."""
    if size == 1:
        return 0
    index = abs(index) % (2 * (size - 1))
    return index if index < size else 2 * (size - 1) - index
