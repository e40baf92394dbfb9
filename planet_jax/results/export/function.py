"""Build the serving function, which maps uint8 chips of any number and size to probabilities."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax
from jaxtyping import Array, Float, Int, UInt8

from planet_jax.model.classifier import Classifier, Variables
from planet_jax.score.calibration import Calibration
from planet_jax.train.steps import batch_logits

PLATFORMS = ("cpu", "cuda", "tpu")
MAX_SIDE = 1024  # pixels; the table of `_shrunken_sides` grows with its square

Serve = Callable[[UInt8[Array, "b h w 3"]], Float[Array, "b classes"]]


def serving_function(
    model: Classifier,
    variables: Variables,
    size: int,
    average: str = "",
    calibration: Calibration | None = None,
) -> Serve:
    """Return a function that computes the probabilities of `predict` from decoded chips.

    It resizes to `size` pixels and applies the classifier. With `average` (probabilities or logits)
    it averages over the eight dihedral views. With `calibration` it scales the logits.
    """

    def serve(chips: UInt8[Array, "b h w 3"]) -> Float[Array, "b classes"]:
        pixels = lax.map(lambda chip: resize(chip, size), chips)  # one at a time, to save memory
        # Without the barrier XLA folds constants into each other, which rounds differently.
        weights = lax.optimization_barrier(variables)
        logits = batch_logits(model, weights, pixels, average)
        if calibration:
            slope, intercept = jnp.float32(calibration.slope), jnp.float32(calibration.intercept)
            logits = slope * logits + intercept
        return jax.nn.sigmoid(logits)

    return serve


def exported(serve: Serve) -> export.Exported:
    """Export `serve` for every platform, any number of chips, and sides up to MAX_SIDE."""
    limits = [f"h <= {MAX_SIDE}", f"w <= {MAX_SIDE}"]
    shape = export.symbolic_shape("b, h, w, 3", constraints=limits)
    chips = jax.ShapeDtypeStruct(shape, jnp.uint8)
    return export.export(jax.jit(serve), platforms=PLATFORMS)(chips)


def resize(chip: UInt8[Array, "h w 3"], size: int) -> UInt8[Array, "size size 3"]:
    """Resize a chip as validation does (`augment.render(chips, None, size)`).

    A chip of `size` pixels is returned unchanged. In other chips, levels differ by at most two from
    validation, because validation rounds means and positions to fixed-point numbers.
    """
    height, width = (jnp.asarray(side, jnp.int32) for side in chip.shape[:2])
    small = jnp.asarray(_shrunken_sides(size), jnp.int32)[:, jnp.minimum(height, width)]
    rows = _axis_weights(chip.shape[0], small[height], size)
    columns = _axis_weights(chip.shape[1], small[width], size)
    # HIGHEST: on a TPU the default precision multiplies in bfloat16.
    levels = jnp.einsum(
        "ih,hwc,jw->ijc", rows, chip.astype(jnp.float32), columns, precision=lax.Precision.HIGHEST
    )
    return jnp.floor(levels + 0.5).astype(jnp.uint8)


def _axis_weights(side: int, small: Int[Array, ""], size: int) -> Float[Array, "size side"]:
    """Return each input pixel's weight in each output pixel, along one axis.

    `side` pixels are shrunk to `small` by area (torch's adaptive windows), then sampled linearly,
    corner to corner. All positions are integer ratios, so equal sides give the identity matrix.
    """
    steps = max(size - 1, 1)
    position = jnp.arange(size, dtype=jnp.int32)[:, None] * (small - 1)
    first, share = position // steps, (position % steps) / steps
    pixel = jnp.arange(side, dtype=jnp.int32)

    def mean(k: Int[Array, "size 1"]) -> Float[Array, "size side"]:
        begin, end = k * side // small, -(-(k + 1) * side // small)
        return ((begin <= pixel) & (pixel < end)) / (end - begin)

    return (1 - share) * mean(first) + share * mean(jnp.minimum(first + 1, small - 1))


def _shrunken_sides(size: int) -> Int[np.ndarray, "side shorter"]:
    """Return a side's length after the area shrink, for every pair of side and shorter side.

    It is a table, because validation divides in float64 and exported functions have float32.
    """
    sides = np.arange(MAX_SIDE + 1)
    shrink = np.maximum(sides, 1) / size / 2
    return np.where(shrink > 1, sides[:, None] / shrink, sides[:, None]).astype(np.int16)
