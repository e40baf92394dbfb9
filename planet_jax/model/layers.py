"""The layers whose details decide whether torch's numbers come out."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

BATCH_AXIS = "devices"  # the mapped axis of pmap, over which the global batch is spread


class Conv(nn.Module):
    """A 2-d convolution without bias, padded by (kernel - 1) / 2 on each side as torch pads it."""

    features: int
    kernel: int = 1
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 features"]:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        # torchvision: kaiming_normal_(mode="fan_out", nonlinearity="relu")
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        kernel = self.param("kernel", init, shape, jnp.float32).astype(self.dtype)
        return convolve(x.astype(self.dtype), kernel, self.stride)


def convolve(x: Array, kernel: Array, stride: int) -> Array:
    """NHWC with HWIO; on a CPU a 1x1 kernel is a matrix product, whose gradients XLA does fast."""

    def convolution(x: Array, kernel: Array) -> Array:
        pad = (kernel.shape[0] - 1) // 2
        return lax.conv_general_dilated(
            x, kernel, (stride,) * 2, [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def product(x: Array, kernel: Array) -> Array:
        return x[:, ::stride, ::stride] @ kernel[0, 0]

    if kernel.shape[:2] != (1, 1):
        return convolution(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=product, default=convolution)


class BatchNorm(nn.Module):
    """BatchNorm as torch computes it: the batch's biased variance normalises, the unbiased is kept.

    Statistics are over all but the last axis, in float32, and over the devices of `axis_name` when
    one is given, so that they are those of the global batch. `decay` is 1 - torch's momentum.
    """

    axis_name: str | None = None
    decay: float = 0.9
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "*n c"], train: bool) -> Float[Array, "*n c"]:
        width = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, width, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, width, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, width, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, width, jnp.float32)
        if train:
            mean, var, count = moments(x, self.axis_name)
            if not self.is_initializing():
                unbiased = var * (count / max(count - 1, 1))
                keep, take = self.decay, 1 - self.decay
                running_mean.value = keep * running_mean.value + take * mean
                running_var.value = keep * running_var.value + take * unbiased
        else:
            mean, var = running_mean.value, running_var.value
        gain = scale * lax.rsqrt(var + self.eps)
        return ((x.astype(jnp.float32) - mean) * gain + bias).astype(x.dtype)


def moments(x: Float[Array, "*n c"], axis_name: str | None) -> tuple[Array, Array, int]:
    """Mean, biased variance (float32 [c]) and count: over all axes but the last, and devices."""
    axes = tuple(range(x.ndim - 1))
    count = x.size // x.shape[-1]
    x = x.astype(jnp.float32)
    mean, square = x.mean(axes), lax.square(x).mean(axes)
    if axis_name is not None:
        mean, square = lax.pmean((mean, square), axis_name)
        count *= lax.axis_size(axis_name)
    return mean, jnp.maximum(square - lax.square(mean), 0), count


class Dropout(nn.Module):
    """Dropout whose mask belongs to a chip's place in the global batch, on whatever device."""

    rate: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "n c"], places: Int[Array, " n"] | None
    ) -> Float[Array, "n c"]:
        """`places` None: the deterministic pass of scoring."""
        if places is None:
            return x
        key = self.make_rng("dropout")

        def keep(place: Array) -> Array:
            return jax.random.bernoulli(jax.random.fold_in(key, place), 1 - self.rate, x.shape[1:])

        return jnp.where(jax.vmap(keep)(places), x / (1 - self.rate), 0)
