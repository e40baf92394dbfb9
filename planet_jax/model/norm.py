"""BatchNorm as torch computes it: alone, folded into a 1x1 convolution, or before a max pool.

Statistics are over all axes but the last. With an `axis_name` they are averaged over its devices,
so they describe the global batch. As in torch, the biased variance of the batch normalizes x, and
the unbiased variance updates the running variance. `decay` is 1 - torch's momentum.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from planet_jax.model import cpu
from planet_jax.model.layers import FLOAT32, Precision, convolve, max_pool, mean_over_devices


class Moments(NamedTuple):
    """The mean and the mean square of each channel, and the number of rows they cover."""

    mean: Float[Array, " c"]
    square: Float[Array, " c"]
    rows: int


class _Norm(nn.Module):
    """The parameters and running statistics that each of the three modules has."""

    axis_name: str | None = None
    precision: Precision = FLOAT32
    decay: float = 0.9
    eps: float = 1e-5

    def _scale_and_bias(self, width: int) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
        dtype = self.precision.state
        scale = self.param("scale", nn.initializers.ones, (width,), dtype)
        return scale, self.param("bias", nn.initializers.zeros, (width,), dtype)

    def _gain_and_shift(
        self, scale: Float[Array, " c"], bias: Float[Array, " c"], batch: Moments | None
    ) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
        """Return the factor and the summand that normalize a channel.

        The mean and variance are the running statistics if `batch` is None. Otherwise they are
        those of the batch, which also update the running statistics.
        """
        shape, dtype = scale.shape, self.precision.state
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, dtype)
        mean, var = running_mean.value, running_var.value
        if batch is not None:
            mean, square, rows = batch
            if self.axis_name is not None:
                mean, square = mean_over_devices((mean, square), self.axis_name)
                rows *= lax.axis_size(self.axis_name)
            var = jnp.maximum(square - lax.square(mean), 0)
            if not self.is_initializing():
                unbiased = var * (rows / max(rows - 1, 1))
                old, new = self.decay, 1 - self.decay
                running_mean.value = old * running_mean.value + new * mean
                running_var.value = old * running_var.value + new * unbiased
        gain = scale * lax.rsqrt(var + self.eps)
        return gain, bias - mean * gain

    def _normalize(self, x: Float[Array, "*n c"], train: bool) -> Float[Array, "*n c"]:
        dtype = self.precision.state
        scale, bias = self._scale_and_bias(x.shape[-1])
        batch = moments(x, dtype) if train else None
        return _multiply_add(x, *self._gain_and_shift(scale, bias, batch))


def _multiply_add(
    x: Float[Array, "*n c"], gain: Float[Array, " c"], shift: Float[Array, " c"]
) -> Float[Array, "*n c"]:
    """Return `x * gain + shift`, computed in gain's dtype.

    torch computes this on a CPU too. The gradient of `(x - mean) * gain + bias` would read the
    difference, which a CPU then stores beside x.
    """
    return (x.astype(gain.dtype) * gain + shift).astype(x.dtype)


class BatchNorm(_Norm):
    """Normalize every channel of x [..., c]."""

    @nn.compact
    def __call__(self, x: Float[Array, "*n c"], train: bool) -> Float[Array, "*n c"]:
        return self._normalize(x, train)


class FoldedBatchNorm(_Norm):
    """Compute a normalized 1x1 convolution of x, with the gain folded into the kernel.

    The convolution's moments follow from those of x. So the convolution is computed once, already
    normalized, and the backward pass does not read its output. A bottleneck's widest
    activations are then read or written three times instead of seven.

    In training this is done if x has at least `fold_from` times as many rows as channels.
    """

    fold_from: int = 0

    @nn.compact
    def __call__(
        self, x: Float[Array, "*n k"], kernel: Float[Array, "1 1 k c"], train: bool
    ) -> Float[Array, "*n c"]:
        if train and rows_of(x) < self.fold_from * x.shape[-1]:
            return self._normalize(convolve(x, kernel.astype(x.dtype)), train)
        scale, bias = self._scale_and_bias(kernel.shape[-1])
        batch = moments_of_product(x, kernel[0, 0]) if train else None
        gain, shift = self._gain_and_shift(scale, bias, batch)
        product = convolve(x, (kernel * gain).astype(x.dtype))
        return (product.astype(shift.dtype) + shift).astype(x.dtype)


class PooledBatchNorm(_Norm):
    """Normalize and max-pool x (3x3, stride 2); the pool is computed first.

    A positive gain keeps the order of values and a negative one reverses it. So the pool runs
    first, on x times the gain's sign, and only the maxima are normalized.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 c"]:
        dtype = self.precision.state
        scale, bias = self._scale_and_bias(x.shape[-1])
        sign = jnp.where(scale < 0, -1, 1)
        # Apply the sign before moments(): the backward pass then needs one copy of x, not two.
        x = x * sign.astype(x.dtype)
        batch = None
        if train:
            batch = moments(x, dtype)
            batch = batch._replace(mean=batch.mean * sign)
        gain, shift = self._gain_and_shift(scale, bias, batch)
        return _multiply_add(max_pool(x) * sign.astype(x.dtype), gain, shift)


def fold_limit(platform: str, freeze: bool) -> int:
    """Return the least ratio of rows to channels at which a training step should fold norms.

    Folding saves memory traffic in proportion to the rows times k, and costs products in proportion
    to the rows times k². A frozen step has three times the cost, because it then computes what a
    full step has anyway: the gradient of the kernel, from which that of the gain follows. Few rows
    stay in a TPU's fast memory or a GPU's cache, so there is nothing to save. At these limits
    no step costs more than plain Flax's on a v5e, v5p or H100, by the larger of computing and
    traffic (docs/benchmarks.md). On a CPU a step without folding is as fast, but needs more memory.
    """
    if platform == "gpu":
        return 4096
    return 256 if freeze else 32


def rows_of(x: Float[Array, "*n c"]) -> int:
    """Return the number of values in each channel."""
    return x.size // x.shape[-1]


def moments(x: Float[Array, "*n c"], dtype: DTypeLike) -> Moments:
    """Return the mean and the mean square of every channel, computed in `dtype`."""
    axes = tuple(range(x.ndim - 1))
    x = x.astype(dtype)
    return Moments(x.mean(axes), lax.square(x).mean(axes), rows_of(x))


def moments_of_product(x: Float[Array, "*n k"], kernel: Float[Array, "k c"]) -> Moments:
    """Return the mean and the mean square of every channel of `x @ kernel`, in kernel's dtype.

    If M [k, k] is the mean of the outer products of x, then E[(x·w)²] = wᵀ M w.
    """
    axes = tuple(range(x.ndim - 1))
    # Both factors of M give the same gradient, so the first is differentiated and then doubled.
    # Subtracting the constant product restores the value of M.
    constant = lax.stop_gradient(x)
    outer = 2 * _outer_products(x, constant, kernel.dtype)
    outer = outer - _outer_products(constant, constant, kernel.dtype)
    rows = rows_of(x)
    square = (kernel * (outer @ kernel)).sum(0) / rows
    return Moments(x.astype(kernel.dtype).mean(axes) @ kernel, square, rows)


def _outer_products(
    x: Float[Array, "*n k"], y: Float[Array, "*n k"], dtype: DTypeLike
) -> Float[Array, "k k"]:
    """Return the sum of the outer products of the rows of x and y, in `dtype`."""

    def contract(x: Array, y: Array) -> Array:
        axes = tuple(range(x.ndim - 1))
        return lax.dot_general(x, y, ((axes, axes), ((), ())), preferred_element_type=dtype)

    def multiply(x: Array, y: Array) -> Array:
        return cpu.outer_products(x, y, dtype)

    return lax.platform_dependent(x, y, cpu=multiply, default=contract)
