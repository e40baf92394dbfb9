"""fastai v1's augmentation: draw the parameters of many chips at once, then render a batch.

The rule is `get_transforms(flip_vert=True, max_lighting=0.1, max_zoom=1.05, max_warp=0)`. Dihedral,
rotation and zoom are composed into one matrix, and the chip is sampled bilinearly once. Brightness
and contrast are then changed in logit space. Coordinates run from -1 to 1 between the centers of
the corner pixels; x points right and y points down.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
from jaxtyping import Float, Int, UInt8

from planet_jax.data import warp

TTA_ZOOM = 1.35  # fastai's scale
TTA_PLAIN = 0.4  # fastai's beta: the weight of the plain chip in the average


@dataclass(frozen=True)
class Augmentation:
    """The parameters of N chips; each parameter is an array [N].

    Attributes:
      dihedral: one of the square's eight symmetries, 0..7; bit 0 flips x, bit 1 flips y, bit 2
        swaps x and y.
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
        """Return the parameters of some of the chips."""
        return Augmentation(*(getattr(self, field.name)[chips] for field in fields(self)))


def draw(
    rng: np.random.Generator,
    n: int,
    max_degrees: float = 10.0,
    max_zoom: float = 1.05,
    max_lighting: float = 0.1,
    p: float = 0.75,
) -> Augmentation:
    """Draw the parameters of n chips.

    Rotation, zoom, brightness and contrast each apply with probability p. The defaults are the
    notebook's values: degrees uniform in ±10, zoom uniform in 1..1.05 about a uniform focus,
    brightness uniform in 0.45..0.55, contrast log-uniform in 0.9..1/0.9.
    """

    def sometimes(low: float, high: float, neutral: float) -> np.ndarray:
        applied = rng.random(n) < p
        return np.where(applied, rng.uniform(low, high, n), neutral)

    max_log_contrast = -np.log(1 - max_lighting)
    return Augmentation(
        dihedral=rng.integers(0, 8, n),
        degrees=sometimes(-max_degrees, max_degrees, 0.0),
        zoom=sometimes(1.0, max_zoom, 1.0),
        row_pct=rng.random(n),
        col_pct=rng.random(n),
        brightness=sometimes((1 - max_lighting) / 2, (1 + max_lighting) / 2, 0.5),
        contrast=np.exp(sometimes(-max_log_contrast, max_log_contrast, 0.0)),
    )


def fastai_tta(rng: np.random.Generator, n: int, view: int, **limits: float) -> Augmentation:
    """Draw view 0..7 of fastai v1's test-time augmentation for n chips.

    The source is `vision/tta.py` of fastai 1.0.61. The training transforms apply, except that
    the zoom is 1.35 into one of the four corners. For views 4 to 7 the caller must also flip the
    rendered chips left to right. `limits` are keywords of `draw`.
    """
    drawn = draw(rng, n, **limits)
    row, column = np.full(n, view & 1, float), np.full(n, view >> 1 & 1, float)
    return replace(drawn, zoom=np.full(n, TTA_ZOOM), row_pct=row, col_pct=column)


def matrices(augmentation: Augmentation) -> Float[np.ndarray, "n 2 3"]:
    """Return M = dihedral @ rotation @ zoom, so that `[x_in, y_in] = M @ [x_out, y_out, 1]`."""
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
    """Render chips at `size` pixels; without `augmentation` only resize them, as in validation.

    The rule is fastai v1's `_grid_sample`. Both grids align their corners. Coordinates outside the
    chip are reflected about the center of the edge pixel. A chip is first shrunk by area if its
    shorter side exceeds `2 * size`, also when divided by the chip's magnification.

    Args:
      rows: indices of the chips to render, in this order (None: all); they are not copied first.
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
    tables = warp.lighting_tables(brightness, contrast)
    shrink = min(height, width) / size / 2
    is_large = (shrink > 1) & (shrink > _magnification(matrix))
    large, others = np.flatnonzero(is_large), np.flatnonzero(~is_large)
    if large.size:
        small = warp.shrink_by_area(chips, rows[large], int(height / shrink), int(width / shrink))
        warp.sample_bilinear(
            small, np.arange(len(large)), matrix, tables, out, large, warp.AREA_BITS
        )
    if others.size:
        warp.sample_bilinear(chips, rows[others], matrix, tables, out, others, 0)
    return out


def _magnification(matrix: Float[np.ndarray, "n 2 3"]) -> Float[np.ndarray, " n"]:
    """Return 2 / (largest - smallest sampled coordinate), over x and y together as in fastai."""
    reach = np.abs(matrix[:, :, :2]).sum(-1)
    offset = matrix[:, :, 2]
    return 2 / ((offset + reach).max(-1) - (offset - reach).min(-1))
