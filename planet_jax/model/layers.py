"""The layers whose details decide whether torch's numbers come out."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from planet_jax.model import cpu

BATCH_AXIS = "devices"  # the mapped axis of pmap, over which the global batch is spread
# torchvision: kaiming_normal_(mode="fan_out", nonlinearity="relu")
KERNEL_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nn.Module):
    """A 2-d convolution without bias, padded by (kernel - 1) / 2 on each side as torch pads it."""

    features: int
    kernel: int = 1
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 features"]:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", KERNEL_INIT, shape, jnp.float32).astype(self.dtype)
        return convolve(x.astype(self.dtype), kernel, self.stride)


def convolve(x: Array, kernel: Array, stride: int = 1) -> Array:
    """NHWC with HWIO."""
    if kernel.shape[:2] == (1, 1) and stride == 1:
        return lax.platform_dependent(x, kernel, cpu=cpu.product, default=_convolution)
    if kernel.shape[:2] == (3, 3):
        return _convolution_3x3(x, kernel, stride)
    return _convolution(x, kernel, stride)


def _convolution(x: Array, kernel: Array, stride: int = 1) -> Array:
    pad = (kernel.shape[0] - 1) // 2
    return lax.conv_general_dilated(
        x, kernel, (stride,) * 2, [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


# A function of its own, so that a CPU can take its gradients another way.
_convolution_3x3 = jax.custom_vjp(_convolution, nondiff_argnums=(2,))


def _gradients_3x3(stride: int, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    def plain(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
        return jax.vjp(lambda x, kernel: _convolution(x, kernel, stride), x, kernel)[1](dy)

    special = functools.partial(cpu.gradients, stride=stride, plain=plain)
    return lax.platform_dependent(*saved, dy, cpu=special, default=plain)


_convolution_3x3.defvjp(
    lambda x, kernel, stride: (_convolution(x, kernel, stride), (x, kernel)), _gradients_3x3
)


def max_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """Of 3x3 at stride 2, padded by 1."""

    def windows(x: Array) -> Array:
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

    return lax.platform_dependent(x, cpu=cpu.max_pool, default=windows)


class Kernel(nn.Module):
    """The weights alone of a 1x1 convolution: for a BatchNorm that takes it into itself."""

    features: int

    @nn.compact
    def __call__(self, width: int) -> Float[Array, "1 1 width features"]:
        return self.param("kernel", KERNEL_INIT, (1, 1, width, self.features), jnp.float32)


class BatchNorm(nn.Module):
    """BatchNorm as torch computes it: the batch's biased variance normalises, the unbiased is kept.

    Statistics are over all but the last axis, in float32, and over the devices of `axis_name` when
    one is given, so that they are those of the global batch. `decay` is 1 - torch's momentum.
    """

    axis_name: str | None = None
    decay: float = 0.9
    eps: float = 1e-5

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*n k"],
        train: bool,
        kernel: Float[Array, "1 1 k c"] | None = None,
        pool: Callable[[Array], Array] | None = None,
    ) -> Float[Array, "*m c"]:
        """`x` normalised; with a `kernel`, the 1x1 convolution of `x` by it, normalised.

        The moments of that product follow from those of `x`, and gains of its channels are gains of
        the kernel's. So it is formed once, normalised already, and its gradient needs it no more:
        a bottleneck's widest activations go through memory three times where it were seven.

        With a `pool` of maxima, the normalised `x` pooled: normalising keeps the order of values
        (turns it, where its gain is negative), so only those that are left are normalised.
        """
        if kernel is not None and train and not worth_it(x):
            x, kernel = convolve(x, kernel.astype(x.dtype)), None
        width = (x.shape[-1] if kernel is None else kernel.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, width, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, width, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, width, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, width, jnp.float32)
        sign = jnp.where(scale < 0, -1, 1)  # of the gains
        if pool is not None:  # before the moments are taken, so that x is kept with one sign alone
            x = x * sign.astype(x.dtype)
        if train:
            mean, square = moments(x) if kernel is None else moments_of_product(x, kernel[0, 0])
            mean = mean if pool is None else mean * sign
            count = x.size // x.shape[-1]
            if self.axis_name is not None:
                mean, square = lax.pmean((mean, square), self.axis_name)
                count *= lax.axis_size(self.axis_name)
            var = jnp.maximum(square - lax.square(mean), 0)
            if not self.is_initializing():
                unbiased = var * (count / max(count - 1, 1))
                keep, take = self.decay, 1 - self.decay
                running_mean.value = keep * running_mean.value + take * mean
                running_var.value = keep * running_var.value + take * unbiased
        else:
            mean, var = running_mean.value, running_var.value
        gain = scale * lax.rsqrt(var + self.eps)
        if kernel is not None:
            product = convolve(x, (kernel * gain).astype(x.dtype))
            return (product.astype(jnp.float32) + (bias - mean * gain)).astype(x.dtype)
        if pool is not None:
            x = pool(x) * sign.astype(x.dtype)
        return ((x.astype(jnp.float32) - mean) * gain + bias).astype(x.dtype)


def worth_it(x: Float[Array, "*n k"]) -> bool:
    """Whether a product's moments are cheaper by way of those of `x`, of which there are k².

    By measurement, on a CPU and by the compiler of a TPU: from 32 rows for each channel on.
    """
    return x.size // x.shape[-1] >= 32 * x.shape[-1]


def moments(x: Float[Array, "*n c"]) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
    """Mean and mean square of every channel, float32."""
    axes = tuple(range(x.ndim - 1))
    x = x.astype(jnp.float32)
    return x.mean(axes), lax.square(x).mean(axes)


def moments_of_product(
    x: Float[Array, "*n k"], kernel: Float[Array, "k c"]
) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
    """Mean and mean square of every channel of `x @ kernel`: from the mean of `x`, and from the
    mean M [k, k] of its outer products, as E[(x·w)²] = wᵀ M w."""
    axes = tuple(range(x.ndim - 1))
    # Both factors of M have the same gradient, for what comes back is symmetric: this takes it once
    # instead of twice.
    constant = lax.stop_gradient(x)
    outer = 2 * outer_products(x, constant) - outer_products(constant, constant)
    square = (kernel * (outer @ kernel)).sum(0) / (x.size // x.shape[-1])
    return x.astype(jnp.float32).mean(axes) @ kernel, square


def outer_products(x: Float[Array, "*n k"], y: Float[Array, "*n k"]) -> Float[Array, "k k"]:
    """The sum over all rows, float32."""

    def contracted(x: Array, y: Array) -> Array:
        axes = tuple(range(x.ndim - 1))
        return lax.dot_general(x, y, ((axes, axes), ((), ())), preferred_element_type=jnp.float32)

    return lax.platform_dependent(x, y, cpu=cpu.outer_products, default=contracted)


@jax.custom_vjp
def relu(x: Array) -> Array:
    """max(x, 0), whose gradient asks its output, which the next layer keeps, not its input."""
    return jnp.maximum(x, 0)


relu.defvjp(
    lambda x: (y := jnp.maximum(x, 0), y),
    lambda y, gradient: (jnp.where(y > 0, gradient, 0),),
)


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
