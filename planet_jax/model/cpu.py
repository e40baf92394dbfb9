"""What XLA computes slowly on a CPU, written another way for it.

`lax.platform_dependent` chooses when the program is lowered: no other platform sees these, and a
function exported for several has the right one on each.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def product(x: Float[Array, "n h w k"], kernel: Float[Array, "1 1 k c"]) -> Array:
    """A 1x1 convolution as a product of matrices; of rows, lest its gradient transposes x."""
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)


def neighbours(x: Float[Array, "n h w k"], stride: int = 1) -> Float[Array, "n h2 w2 9*k"]:
    """What a 3x3 kernel sees from each place; lax.conv_general_dilated_patches would convolve."""
    (h, w), x = x.shape[1:3], jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    seen = [x[:, i : i + h : stride, j : j + w : stride] for i in range(3) for j in range(3)]
    return jnp.concatenate(seen, -1)


def gradients(
    x: Array, kernel: Array, dy: Array, stride: int, plain: Callable[..., tuple[Array, Array]]
) -> tuple[Array, Array]:
    """Of a 3x3 convolution's x [n h w k] and kernel [3 3 k c], from dy [n h2 w2 c]: `plain` ones,
    but where a product is quicker."""
    dx, dkernel = plain(x, kernel, dy)  # XLA drops what is not used
    k, c = kernel.shape[2:]
    if k >= 256:  # the plain one turns the kernel about, which takes as long again
        seen = dy.reshape(-1, c) @ kernel.reshape(-1, c).T
        transposed = jax.linear_transpose(functools.partial(neighbours, stride=stride), x)
        (dx,) = transposed(seen.reshape(*dy.shape[:-1], -1))
    if k <= 64 and stride == 1:  # few channels in many places: XLA's own takes half as long again
        rows = x.reshape(-1, k).T @ neighbours(dy).reshape(-1, 9 * c)
        dkernel = rows.reshape(k, 3, 3, c)[:, ::-1, ::-1].transpose(1, 2, 0, 3)
    return dx, dkernel


def outer_products(
    x: Float[Array, "*n k"], y: Float[Array, "*n k"], dtype: DTypeLike
) -> Float[Array, "k k"]:
    """Return the sum over all rows, in `dtype`, as one product of matrices."""
    rows = (-1, x.shape[-1])
    return jnp.matmul(x.reshape(rows).T, y.reshape(rows), preferred_element_type=dtype)


def max_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """3x3 at stride 2, as maxima of slices: first of the rows, then of the columns. Of equals the
    first takes the gradient, as in torch."""
    for axis in (1, 2):
        pad = [(int(i == axis),) * 2 for i in range(4)]
        x = jnp.pad(x, pad, constant_values=-jnp.inf)
        slices = (lax.slice_in_dim(x, i, x.shape[axis] - 2 + i, 2, axis) for i in range(3))
        x = functools.reduce(lambda a, b: jnp.where(a >= b, a, b), slices)
    return x
