"""The serving function: uint8 chips of any number and size to probabilities, for `jax.export`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax
from jaxtyping import Array, Float, Int, UInt8

from planet_jax.data.warp import AREA_BITS, POSITION_BITS, SHARE_BITS, lighting_tables
from planet_jax.model.classifier import Classifier, Variables
from planet_jax.score.calibration import Calibration
from planet_jax.train.steps import batch_logits

PLATFORMS = ("cpu", "cuda", "tpu")
MOST = 1024  # pixels of a chip's side; the tables below grow with it

Serve = Callable[[UInt8[Array, "b h w 3"]], Float[Array, "b classes"]]


def serving_function(
    model: Classifier,
    variables: Variables,
    size: int,
    average: str = "",
    calibration: Calibration | None = None,
) -> Serve:
    """What `predict` computes of decoded chips: resize, logits (`average`d over views), sigmoid."""

    def serve(chips: UInt8[Array, "b h w 3"]) -> Float[Array, "b classes"]:
        # A loop of two rounds at least: XLA fuses no loop into what follows, so that floats are
        # rounded as they are in `predict`, which is given resized chips.
        again = jnp.concatenate([chips, chips[:1]])
        pixels = lax.map(lambda chip: resize(chip[None], size)[0], again)[:-1]
        weights = lax.optimization_barrier(variables)  # not folded into each other
        logits = batch_logits(model, weights, pixels, average)
        if calibration:
            slope, intercept = jnp.float32(calibration.slope), jnp.float32(calibration.intercept)
            logits = slope * logits + intercept
        return jax.nn.sigmoid(logits)

    return serve


def exported(serve: Serve) -> export.Exported:
    """The function with its weights, for every platform, number of chips and size up to MOST."""
    shape = export.symbolic_shape("b, h, w, 3", constraints=[f"h <= {MOST}", f"w <= {MOST}"])
    chips = jax.ShapeDtypeStruct(shape, jnp.uint8)
    return export.export(jax.jit(serve), platforms=PLATFORMS)(chips)


def resize(chips: UInt8[Array, "b h w 3"], size: int) -> UInt8[Array, "b size size 3"]:
    """`augment.render(chips, None, size)` to the bit, for sides up to MOST, known late.

    A pixel of the shrunken chip is the mean of a window; of a chip that need not shrink, of a
    window of one. What the kernel computes in float64 stands in tables, what it has in 64 bits is
    cut in two.
    """
    height, width = (jnp.asarray(side, jnp.int32) for side in chips.shape[1:3])
    sides, rows, columns = _tables(size)
    shorter = jnp.minimum(height, width)
    top, bottom, lower_share = _windows(height, jnp.asarray(sides)[height, shorter], rows)
    left, right, right_share = _windows(width, jnp.asarray(sides)[width, shorter], columns)
    sums = _sums(chips.astype(jnp.int32), 1, top, bottom)  # [b, size, 2, w, 3]
    sums = _sums(sums, 3, left, right)  # [b, size, 2, size, 2, 3]
    area = ((bottom - top)[..., None, None] * (right - left))[..., None]
    pixels = ((sums << AREA_BITS) + area // 2) // area

    whole, share = 1 << SHARE_BITS, right_share[:, None]
    lines = pixels[..., 0, :] * (whole - share) + pixels[..., 1, :] * share  # [b, size, 2, size, 3]
    share, cut = lower_share[:, None, None], 12

    def blend(part: Int[Array, "b size 2 size 3"]) -> Int[Array, "b size size 3"]:
        return part[:, :, 0] * (whole - share) + part[:, :, 1] * share

    to_quarter_levels = 2 * SHARE_BITS + AREA_BITS - 2
    low = blend(lines & ((1 << cut) - 1)) + (1 << (to_quarter_levels - 1))
    level = (blend(lines >> cut) + (low >> cut)) >> (to_quarter_levels - cut)
    return jnp.asarray(lighting_tables(np.zeros(1), np.ones(1))[0])[level]


def _tables(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the kernel computes in float64, for all chips.

    [side, shorter side]: the side after the shrink by area. [side, i]: where output row i, and
    output column i, lies on a side of so many pixels, with SHARE_BITS below the pixel.
    """
    every = np.arange(MOST + 1)
    shrink = np.maximum(every, 1) / size / 2
    sides = np.where(shrink > 1, every[:, None] / shrink, every[:, None])
    unit, half_share = 1 << POSITION_BITS, 1 << (POSITION_BITS - SHARE_BITS - 1)
    step, half = 2 / max(size - 1, 1), (every[:, None] - 1) / 2 * unit
    i = np.arange(size)
    rows = ((i * step - 1 + 1) * half).astype(np.int64)
    columns = i * (step * half).astype(np.int64)
    rows, columns = ((at + half_share) >> (POSITION_BITS - SHARE_BITS) for at in (rows, columns))
    return sides.astype(np.int16), rows.astype(np.int32), columns.astype(np.int32)


def _windows(
    side: Int[Array, ""], small: Int[Array, ""], table: Int[np.ndarray, "side size"]
) -> tuple[Int[Array, "size 2"], Int[Array, "size 2"], Int[Array, " size"]]:
    """Where the windows of the two neighbours of each output pixel begin and end, on one axis, and
    the second one's share; `small` is the side after the shrink."""
    small = small.astype(jnp.int32)
    position = jnp.asarray(table)[small]
    first = position >> SHARE_BITS
    second = jnp.where(first + 1 < small, first + 1, jnp.maximum(small - 2, 0))
    pair = jnp.stack([first, second], axis=1)
    return pair * side // small, -(-(pair + 1) * side // small), position & ((1 << SHARE_BITS) - 1)


def _sums(x: Int[Array, "..."], axis: int, first: Array, last: Array) -> Int[Array, "..."]:
    """Sums over the windows from `first` up to `last` along an axis, which takes their shape."""
    padding = [(int(i == axis), 0) for i in range(x.ndim)]
    total = jnp.pad(jnp.cumsum(x, axis), padding)
    return jnp.take(total, last, axis, mode="clip") - jnp.take(total, first, axis, mode="clip")


__all__ = ["MOST", "PLATFORMS", "exported", "resize", "serving_function"]
