"""fastai v1's augmentation: draw the parameters of many chips at once, then render a batch.

`get_transforms(flip_vert=True, max_lighting=0.1, max_zoom=1.05, max_warp=0)` composes dihedral,
rotation and zoom into one matrix, samples the chip bilinearly once, and then moves brightness and
contrast in logit space. Coordinates run from -1 to 1, corner pixel to corner pixel, x to the right
and y down.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import numba
import numpy as np
from jaxtyping import Float, Int, UInt8

TTA_ZOOM, TTA_PLAIN = 1.35, 0.4  # fastai's scale; its beta, the share of the plain chip
LEVELS = 1020  # steps of the lighting table: a quarter of a uint8 level


@dataclass(frozen=True)
class Augmentation:
    """The parameters of N chips, each an array [N].

    Attributes:
      dihedral: which of the square's eight symmetries, 0..7; bit 0 flips x, bit 1 flips y, bit 2
        swaps them.
      degrees: rotation; 0 is neutral.
      zoom: magnification; 1 is neutral.
      row_pct, col_pct: the zoom's focus, 0 at the top and left, 1 at the bottom and right.
      brightness: adds logit(brightness) in logit space; 0.5 is neutral.
      contrast: multiplies in logit space; 1 is neutral.
    """

    dihedral: Int[np.ndarray, " n"]
    degrees: Float[np.ndarray, " n"]
    zoom: Float[np.ndarray, " n"]
    row_pct: Float[np.ndarray, " n"]
    col_pct: Float[np.ndarray, " n"]
    brightness: Float[np.ndarray, " n"]
    contrast: Float[np.ndarray, " n"]

    def __getitem__(self, chips: Int[np.ndarray, " m"]) -> "Augmentation":
        """The parameters of some of the chips."""
        return Augmentation(*(getattr(self, field.name)[chips] for field in fields(self)))


def draw(
    rng: np.random.Generator,
    n: int,
    max_degrees: float = 10.0,
    max_zoom: float = 1.05,
    max_lighting: float = 0.1,
    p: float = 0.75,
) -> Augmentation:
    """Draws for n chips; rotation, zoom, brightness and contrast each apply with probability p.

    The defaults are the notebook's: degrees uniform in ±10, zoom uniform in 1..1.05 about a focus
    anywhere, brightness uniform in 0.45..0.55, contrast log-uniform in 0.9..1/0.9.
    """

    def sometimes(low: float, high: float, neutral: float) -> np.ndarray:
        applied = rng.random(n) < p
        return np.where(applied, rng.uniform(low, high, n), neutral)

    contrast = -np.log(1 - max_lighting)
    return Augmentation(
        dihedral=rng.integers(0, 8, n),
        degrees=sometimes(-max_degrees, max_degrees, 0.0),
        zoom=sometimes(1.0, max_zoom, 1.0),
        row_pct=rng.random(n),
        col_pct=rng.random(n),
        brightness=sometimes((1 - max_lighting) / 2, (1 + max_lighting) / 2, 0.5),
        contrast=np.exp(sometimes(-contrast, contrast, 0.0)),
    )


def fastai_tta(rng: np.random.Generator, n: int, view: int, **limits: float) -> Augmentation:
    """fastai v1's view 0..7 of n chips for test-time augmentation (`vision/tta.py` of 1.0.61).

    The training transforms stay on (`limits` are `draw`'s), but for zoom, which is 1.35 into a
    corner; of views 4 to 7 the caller flips the rendered chips left to right.
    """
    drawn = draw(rng, n, **limits)
    row, column = np.full(n, view & 1, float), np.full(n, view >> 1 & 1, float)
    return replace(drawn, zoom=np.full(n, TTA_ZOOM), row_pct=row, col_pct=column)


def matrices(augmentation: Augmentation) -> Float[np.ndarray, "n 2 3"]:
    """`[x_in, y_in] = M @ [x_out, y_out, 1]`, with M = dihedral @ rotation @ zoom."""
    k = augmentation.dihedral
    x, y = np.where(k & 1, -1.0, 1.0), np.where(k & 2, -1.0, 1.0)
    swap, zero = (k & 4) > 0, np.zeros(len(k))
    dihedral = _stack([[np.where(swap, zero, x), np.where(swap, x, zero)],
                       [np.where(swap, y, zero), np.where(swap, zero, y)]])  # fmt: skip
    angle = np.deg2rad(augmentation.degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    rotation = _stack([[cos, -sin], [sin, cos]])
    scale = 1 / augmentation.zoom
    zoom = _stack([[scale, zero, (1 - scale) * (2 * augmentation.col_pct - 1)],
                   [zero, scale, (1 - scale) * (2 * augmentation.row_pct - 1)]])  # fmt: skip
    return dihedral @ rotation @ zoom


def _stack(rows: list[list[np.ndarray]]) -> np.ndarray:
    return np.stack([np.stack(row, -1) for row in rows], -2)


def render(
    chips: UInt8[np.ndarray, "n h w 3"],
    augmentation: Augmentation | None,
    size: int,
    rows: Int[np.ndarray, " m"] | None = None,
) -> UInt8[np.ndarray, "m size size 3"]:
    """Renders chips at `size` pixels; `None` is the plain resize of validation.

    With `rows` only those are rendered, read where they lie (in a memory-mapped store, say).

    Both grids are addressed corner to corner, outside pixels reflect about the edge pixel's centre,
    and a chip more than twice too large is first shrunk by area (fastai v1's `_grid_sample`).
    """
    chips = np.ascontiguousarray(chips)
    rows = np.arange(len(chips)) if rows is None else rows
    n, (height, width) = len(rows), chips.shape[1:3]
    out = np.empty((n, size, size, 3), np.uint8)
    if augmentation is None:
        matrix = np.tile(np.eye(2, 3), (n, 1, 1))
        brightness, contrast = np.zeros(n), np.ones(n)
    else:
        matrix = matrices(augmentation)
        change = augmentation.brightness
        brightness, contrast = np.log(change / (1 - change)), augmentation.contrast
    tables = lighting_tables(brightness, contrast)
    shrink = min(height, width) / size / 2
    shrinks = (shrink > 1) & (shrink > _magnification(matrix))
    if large := np.flatnonzero(shrinks).tolist():
        small = _shrink_by_area(chips, rows[large], int(height / shrink), int(width / shrink))
        _sample(small, np.arange(len(large)), np.array(large), matrix, tables, out, AREA_BITS)
    if (others := np.flatnonzero(~shrinks)).size:
        _sample(chips, rows[others], others, matrix, tables, out, 0)
    return out


def _magnification(matrix: Float[np.ndarray, "n 2 3"]) -> Float[np.ndarray, " n"]:
    """2 over the span of all sampled coordinates, x and y together."""
    reach = np.abs(matrix[:, :, :2]).sum(-1)
    offset = matrix[:, :, 2]
    return 2 / ((offset + reach).max(-1) - (offset - reach).min(-1))


LOGIT = np.linspace(0, 1, LEVELS + 1).clip(1e-7, 1 - 1e-7)
LOGIT = np.log(LOGIT / (1 - LOGIT)).astype(np.float32)


def lighting_tables(brightness: np.ndarray, contrast: np.ndarray) -> UInt8[np.ndarray, "n levels"]:
    """A chip's output level for each quarter level of input: sigmoid((logit + b) c)."""
    logit = (LOGIT + brightness[:, None].astype(np.float32)) * contrast[:, None].astype(np.float32)
    return (255 / (1 + np.exp(-logit)) + np.float32(0.5)).astype(np.uint8)


# The kernels compute in integers: a coordinate has POSITION_BITS below the pixel, a bilinear share
# SHARE_BITS, and a pixel that is a mean of others AREA_BITS. Unsigned indices spare numba's check
# for negative ones, which costs more than the arithmetic.
POSITION_BITS, SHARE_BITS, AREA_BITS = 24, 11, 6


@numba.njit(nogil=True, cache=True)
def _shrink_by_area(chips: np.ndarray, rows: np.ndarray, height: int, width: int) -> np.ndarray:
    """Means over torch's adaptive windows, from floor(i H / h) to ceil((i + 1) H / h)."""
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


@numba.njit(nogil=True, cache=True)
def _reflect(index: Any, size: Any) -> Any:
    """reflect_101: ... 2 1 | 0 1 2 ... n-1 | n-2 ..."""
    if size == 1:
        return 0
    index = abs(index) % (2 * (size - 1))
    return index if index < size else 2 * (size - 1) - index


@numba.njit(nogil=True, cache=True)
def _sample(
    source: np.ndarray,
    rows: np.ndarray,
    places: np.ndarray,
    matrix: np.ndarray,
    tables: np.ndarray,
    out: np.ndarray,
    pixel_bits: int,
) -> None:
    """Samples source[rows[k]] bilinearly, through the chip's table, into out[places[k]]."""
    _, height, width, _ = source.shape
    size = out.shape[1]
    pixels, target = source.reshape(len(source), -1), out.reshape(len(out), -1)
    whole = np.uint64(1 << SHARE_BITS)
    to_quarter_levels = np.uint64(2 * SHARE_BITS + pixel_bits - 2)
    half_level = np.uint64(1) << (to_quarter_levels - np.uint64(1))
    unit, half_share = 1 << POSITION_BITS, 1 << (POSITION_BITS - SHARE_BITS - 1)
    step, half_w, half_h = 2 / max(size - 1, 1), (width - 1) / 2 * unit, (height - 1) / 2 * unit
    for k in range(len(rows)):
        chip, m = pixels[rows[k]], matrix[places[k]]
        table, line = tables[places[k]], target[places[k]]
        x_step, y_step = np.int64(m[0, 0] * step * half_w), np.int64(m[1, 0] * step * half_h)
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
                right_share = np.uint64(x >> (POSITION_BITS - SHARE_BITS)) & (whole - np.uint64(1))
                lower_share = np.uint64(y >> (POSITION_BITS - SHARE_BITS)) & (whole - np.uint64(1))
                left_share, upper_share = whole - right_share, whole - lower_share
                upper_left = np.uint64((top * width + left) * 3)
                upper_right = np.uint64((top * width + right) * 3)
                lower_left = np.uint64((bottom * width + left) * 3)
                lower_right = np.uint64((bottom * width + right) * 3)
                for channel in range(3):
                    c = np.uint64(channel)
                    upper = chip[upper_left + c] * left_share + chip[upper_right + c] * right_share
                    lower = chip[lower_left + c] * left_share + chip[lower_right + c] * right_share
                    level = upper * upper_share + lower * lower_share + half_level
                    line[at + c] = table[level >> to_quarter_levels]
                at += np.uint64(3)
                x += x_step
                y += y_step
