"""CPU forms of operations for which XLA generates slow CPU code.

Callers choose a form with `lax.platform_dependent` at lowering. So other platforms never compile
these forms, and a function exported for several platforms has the right form on each platform.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def product(x: Float[Array, "n h w k"], kernel: Float[Array, "1 1 k c"]) -> Array:
    """Compute a 1x1 convolution as a matrix product.

    x is flattened to rows, because the gradient of a 4-d product would transpose x.
    """
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)


def product_of_patches(
    x: Float[Array, "n h w k"], kernel: Float[Array, "i j k c"], stride: int
) -> Float[Array, "n h2 w2 c"]:
    """Compute a convolution of small images as one matrix product of their patches.

    If the kernel has as many positions as the image, XLA makes the image the kernel of an equal
    convolution. Neither Eigen nor YNNPACK computes that one: for 2x2 images it takes 60 times as
    long. Up to 4x4 images, the gradient is faster than that of a convolution, which transposes the
    kernel.
    """
    n, (rows, columns), pad = x.shape[0], kernel.shape[:2], (kernel.shape[0] - 1) // 2
    height, width = (-(-side // stride) for side in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    shifted = [
        x[:, i : i + (height - 1) * stride + 1 : stride, j : j + (width - 1) * stride + 1 : stride]
        for i in range(rows)
        for j in range(columns)
    ]
    patches = jnp.concatenate(shifted, -1).reshape(n * height * width, -1)
    return (patches @ kernel.reshape(-1, kernel.shape[-1])).reshape(n, height, width, -1)


def outer_products(
    x: Float[Array, "*n k"], y: Float[Array, "*n k"], dtype: DTypeLike
) -> Float[Array, "k k"]:
    """Return the sum of the outer products of all rows, in `dtype`, as one matrix product."""
    rows = (-1, x.shape[-1])
    return jnp.matmul(x.reshape(rows).T, y.reshape(rows), preferred_element_type=dtype)


def max_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """Max-pool x (3x3, stride 2, padding 1): maxima of slices along h, then along w.

    Among equal values in a window, the gradient goes to the leftmost column, then the topmost row.
    """
    for axis in (1, 2):
        pad = [(int(i == axis),) * 2 for i in range(4)]
        x = jnp.pad(x, pad, constant_values=-jnp.inf)
        slices = (lax.slice_in_dim(x, i, x.shape[axis] - 2 + i, 2, axis) for i in range(3))
        x = functools.reduce(lambda a, b: jnp.where(a >= b, a, b), slices)
    return x


def store(x: Array) -> Array:
    """Return x, computed once and kept in memory.

    Otherwise XLA for CPUs computes a block's output again in each elementwise operation that reads
    it, and with it the outputs of the blocks before. It drops `lax.optimization_barrier` before it
    decides that, but does not inline a call with `inlineable="false"`.
    """
    return set_xla_metadata(_identity(x), inlineable="false")


@jax.jit
def _identity(x: Array) -> Array:
    return x
