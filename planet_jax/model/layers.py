"""Layers with torch's definitions, and the mean over devices that some of them need."""

import functools
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from planet_jax.model import cpu

BATCH_AXIS = "devices"  # pmap's axis: the global batch is split over it
# torchvision: kaiming_normal_(mode="fan_out", nonlinearity="relu")
KERNEL_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


@dataclass(frozen=True)
class Precision:
    """The dtypes of a network: `activations` of the backbone, `state` of everything else.

    `state` applies to parameters, batch statistics, the head and logits.
    """

    activations: DTypeLike
    state: DTypeLike


FLOAT32 = Precision(jnp.float32, jnp.float32)
PRECISIONS = {
    "float32": FLOAT32,
    "bfloat16": Precision(jnp.bfloat16, jnp.float32),
    "float64": Precision(jnp.float64, jnp.float64),  # for tests; needs jax_enable_x64
}


def mean_over_devices(tree: Any, axis_name: str) -> Any:
    """Return the mean of every array over the devices.

    A single device needs no all-reduce. XLA for CPUs would turn it into a copy.
    """
    return lax.pmean(tree, axis_name) if lax.axis_size(axis_name) > 1 else tree


class Conv(nn.Module):
    """Convolve in 2-d without bias, padded by (kernel - 1) / 2 on each side as in torch."""

    features: int
    kernel: int = 1
    stride: int = 1
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 features"]:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        dtype = self.precision.activations
        kernel = self.param("kernel", KERNEL_INIT, shape, self.precision.state).astype(dtype)
        return convolve(x.astype(dtype), kernel, self.stride)


class Kernel(nn.Module):
    """Hold the weights of a 1x1 convolution that a `FoldedBatchNorm` computes."""

    features: int
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, width: int) -> Float[Array, "1 1 width features"]:
        shape = (1, 1, width, self.features)
        return self.param("kernel", KERNEL_INIT, shape, self.precision.state)


def convolve(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Convolve x (NHWC) by kernel (HWIO), padded as in torch."""
    if kernel.shape[:2] == (1, 1) and stride == 1:
        return lax.platform_dependent(x, kernel, cpu=cpu.product, default=_convolution)
    outputs = -(-x.shape[1] // stride) * -(-x.shape[2] // stride)
    if kernel.shape[:2] == (3, 3) and outputs <= 16:  # cpu.product_of_patches has the reason
        patches = functools.partial(cpu.product_of_patches, stride=stride)
        plain = functools.partial(_convolution, stride=stride)
        return lax.platform_dependent(x, kernel, cpu=patches, default=plain)
    return _convolution(x, kernel, stride)


def _convolution(x: Array, kernel: Array, stride: int = 1) -> Array:
    pad = (kernel.shape[0] - 1) // 2
    return lax.conv_general_dilated(
        x, kernel, (stride,) * 2, [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def max_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """Take 3x3 maxima at stride 2, padded by 1."""

    def windows(x: Array) -> Array:
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

    return lax.platform_dependent(x, cpu=cpu.max_pool, default=windows)


@jax.custom_vjp
def relu(x: Array) -> Array:
    """Return max(x, 0); its gradient reads the output, which the next layer keeps anyway."""
    return jnp.maximum(x, 0)


@jax.custom_vjp
def stored_relu(x: Array) -> Array:
    """Return max(x, 0), which a CPU computes once (`cpu.store` has the reason)."""
    return lax.platform_dependent(jnp.maximum(x, 0), cpu=cpu.store, default=lambda y: y)


def _relu_gradient(y: Array, gradient: Array) -> tuple[Array]:
    return (jnp.where(y > 0, gradient, 0),)


relu.defvjp(lambda x: (y := relu(x), y), _relu_gradient)
stored_relu.defvjp(lambda x: (y := stored_relu(x), y), _relu_gradient)


class Dropout(nn.Module):
    """Drop values by a mask that depends only on the key and the chip's global batch index."""

    rate: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "n c"], batch_indices: Int[Array, " n"] | None
    ) -> Float[Array, "n c"]:
        """Drop values of x and scale the others; return x itself if `batch_indices` is None."""
        if batch_indices is None:
            return x
        key = self.make_rng("dropout")

        def keep(place: Array) -> Array:
            return jax.random.bernoulli(jax.random.fold_in(key, place), 1 - self.rate, x.shape[1:])

        return jnp.where(jax.vmap(keep)(batch_indices), x / (1 - self.rate), 0)
