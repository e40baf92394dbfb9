"""fastai v1's augmentation: draw the parameters of many chips at once, then render a batch.

`get_transforms(flip_vert=True, max_lighting=0.1, max_zoom=1.05, max_warp=0)` composes dihedral,
rotation and zoom into one matrix, samples the chip bilinearly once, and then moves brightness and
contrast in logit space. Coordinates run from -1 to 1, corner pixel to corner pixel, x to the right
and y down.
"""

from dataclasses import dataclass, fields

import numba
import numpy as np
from jaxtyping import Float, Int, UInt8

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
    chips: UInt8[np.ndarray, "n h w 3"], augmentation: Augmentation | None, size: int
) -> UInt8[np.ndarray, "n size size 3"]:
    """Renders chips at `size` pixels; `None` is the plain resize of validation.

    Both grids are addressed corner to corner, outside pixels reflect about the edge pixel's centre,
    and a chip more than twice too large is first shrunk by area (fastai v1's `_grid_sample`).
    """
    chips = np.ascontiguousarray(chips)
    n, height, width, _ = chips.shape
    out = np.empty((n, size, size, 3), np.uint8)
    if augmentation is None:
        matrix = np.tile(np.eye(2, 3), (n, 1, 1))
        brightness, contrast = np.zeros(n), np.ones(n)
    else:
        matrix = matrices(augmentation)
        change = augmentation.brightness
        brightness, contrast = np.log(change / (1 - change)), augmentation.contrast
    shrink = min(height, width) / size / 2
    shrinks = (shrink > 1) & (shrink > _magnification(matrix))
    small = (max(int(height / shrink), 1), max(int(width / shrink), 1))
    tables = _lighting_tables(brightness, contrast)
    for group in (shrinks, ~shrinks):
        chosen = np.flatnonzero(group)
        if len(chosen) == 0:
            continue
        source = _shrink_by_area(chips[chosen], *small) if group is shrinks else chips
        where = np.arange(len(chosen)) if group is shrinks else chosen
        _sample(source, where, chosen, matrix.astype(np.float32), tables, out)
    return out


def _magnification(matrix: Float[np.ndarray, "n 2 3"]) -> Float[np.ndarray, " n"]:
    """2 over the span of all sampled coordinates, x and y together."""
    reach = np.abs(matrix[:, :, :2]).sum(-1)
    offset = matrix[:, :, 2]
    return 2 / ((offset + reach).max(-1) - (offset - reach).min(-1))


LOGIT = np.linspace(0, 1, LEVELS + 1).clip(1e-7, 1 - 1e-7)
LOGIT = np.log(LOGIT / (1 - LOGIT)).astype(np.float32)


def _lighting_tables(brightness: np.ndarray, contrast: np.ndarray) -> UInt8[np.ndarray, "n levels"]:
    """A chip's output level for each quarter level of input: sigmoid((logit + b) c)."""
    logit = (LOGIT + brightness[:, None].astype(np.float32)) * contrast[:, None].astype(np.float32)
    return (255 / (1 + np.exp(-logit)) + np.float32(0.5)).astype(np.uint8)


@numba.njit(nogil=True, cache=True)
def _shrink_by_area(chips: np.ndarray, height: int, width: int) -> np.ndarray:
    """Means over torch's adaptive windows, from floor(i H / h) to ceil((i + 1) H / h)."""
    n, h, w, channels = chips.shape
    out = np.empty((n, height, width, channels), np.float32)
    for i in range(height):
        top, bottom = i * h // height, -(-(i + 1) * h // height)
        for j in range(width):
            left, right = j * w // width, -(-(j + 1) * w // width)
            area = np.float32((bottom - top) * (right - left))
            for k in range(n):
                for c in range(channels):
                    total = np.float32(0)
                    for y in range(top, bottom):
                        for x in range(left, right):
                            total += np.float32(chips[k, y, x, c])
                    out[k, i, j, c] = total / area
    return out


@numba.njit(nogil=True, cache=True)
def _reflect(index: int, size: int) -> int:
    """reflect_101: ... 2 1 | 0 1 2 ... n-1 | n-2 ..."""
    if size == 1:
        return 0
    index = abs(index) % (2 * (size - 1))
    return index if index < size else 2 * (size - 1) - index


@numba.njit(nogil=True, cache=True, fastmath=True)
def _sample(
    source: np.ndarray,
    where: np.ndarray,
    chosen: np.ndarray,
    matrix: np.ndarray,
    tables: np.ndarray,
    out: np.ndarray,
) -> None:
    """Samples source[where[k]] bilinearly, through the chip's table, into out[chosen[k]]."""
    _, height, width, _ = source.shape
    size = out.shape[1]
    step = np.float32(2 / max(size - 1, 1))
    half_w, half_h = np.float32((width - 1) / 2), np.float32((height - 1) / 2)
    quarter = np.float32(LEVELS / 255)
    for k in range(len(chosen)):
        chip, target = source[where[k]], out[chosen[k]]
        m, table = matrix[chosen[k]], tables[chosen[k]]
        for i in range(size):
            y_out = np.float32(i) * step - 1
            x_start = (m[0, 1] * y_out + m[0, 2] - m[0, 0] + 1) * half_w
            y_start = (m[1, 1] * y_out + m[1, 2] - m[1, 0] + 1) * half_h
            x_step, y_step = m[0, 0] * step * half_w, m[1, 0] * step * half_h
            for j in range(size):
                x, y = x_start + np.float32(j) * x_step, y_start + np.float32(j) * y_step
                left, top = int(np.floor(x)), int(np.floor(y))
                right_share, bottom_share = x - np.float32(left), y - np.float32(top)
                right, bottom = left + 1, top + 1
                if left < 0 or top < 0 or right >= width or bottom >= height:
                    left, right = _reflect(left, width), _reflect(right, width)
                    top, bottom = _reflect(top, height), _reflect(bottom, height)
                for c in range(3):
                    upper = np.float32(chip[top, left, c])
                    upper += right_share * (np.float32(chip[top, right, c]) - upper)
                    lower = np.float32(chip[bottom, left, c])
                    lower += right_share * (np.float32(chip[bottom, right, c]) - lower)
                    level = (upper + bottom_share * (lower - upper)) * quarter + np.float32(0.5)
                    target[i, j, c] = table[int(level)]
