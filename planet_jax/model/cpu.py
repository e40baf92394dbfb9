"""CPU forms of operations for which XLA generates slow CPU code.

Callers choose a form with `lax.platform_dependent` at lowering. So other platforms never compile
these forms, and a function exported for several platforms has the right form on each platform.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def product(x: Float[Array, "n h w k"], kernel: Float[Array, "1 1 k c"]) -> Array:
    """Compute a 1x1 convolution as a matrix product.

    x is flattened to rows, because the gradient of a 4-d product would transpose x.
    """
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)


def neighbors(x: Float[Array, "n h w k"], stride: int = 1) -> Float[Array, "n h2 w2 9*k"]:
    """Gather the 3x3 patch around each place, padded by 1 (im2col).

    `lax.conv_general_dilated_patches` would run a convolution.
    """
    (h, w), x = x.shape[1:3], jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    patches = [x[:, i : i + h : stride, j : j + w : stride] for i in range(3) for j in range(3)]
    return jnp.concatenate(patches, -1)


def gradients(
    x: Array, kernel: Array, dy: Array, stride: int, plain: Callable[..., tuple[Array, Array]]
) -> tuple[Array, Array]:
    """Return a 3x3 convolution's gradients with respect to x [n h w k] and kernel [3 3 k c].

    dy is [n h2 w2 c]. `plain` computes both. Where a matrix product proved faster, it replaces one.
    """
    dx, dkernel = plain(x, kernel, dy)  # XLA removes a result that is not used
    k, c = kernel.shape[2:]
    if k >= 256:  # XLA's form transposes the kernel first, which doubles the time
        patches = dy.reshape(-1, c) @ kernel.reshape(-1, c).T
        transposed = jax.linear_transpose(functools.partial(neighbors, stride=stride), x)
        (dx,) = transposed(patches.reshape(*dy.shape[:-1], -1))
    if k <= 64 and stride == 1:  # few channels, many places: XLA's form takes 1.5 times as long
        rows = x.reshape(-1, k).T @ neighbors(dy).reshape(-1, 9 * c)
        dkernel = rows.reshape(k, 3, 3, c)[:, ::-1, ::-1].transpose(1, 2, 0, 3)
    return dx, dkernel


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
