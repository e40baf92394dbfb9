"""What XLA computes slowly on a CPU, written another way for it.

`lax.platform_dependent` chooses when the program is lowered: no other platform sees these, and a
function exported for several has the right one on each.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def product(x: Float[Array, "n h w k"], kernel: Float[Array, "1 1 k c"]) -> Array:
    """A 1x1 convolution as a product of matrices; of rows, lest its gradient transposes x."""
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)


def outer_products(x: Float[Array, "*n k"], y: Float[Array, "*n k"]) -> Float[Array, "k k"]:
    """Their sum over all rows, likewise; float32."""
    rows = (-1, x.shape[-1])
    return jnp.matmul(x.reshape(rows).T, y.reshape(rows), preferred_element_type=jnp.float32)


def max_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """3x3 at stride 2, as maxima of slices: first of the rows, then of the columns."""
    for axis in (1, 2):
        pad = [(int(i == axis),) * 2 for i in range(4)]
        x = jnp.pad(x, pad, constant_values=-jnp.inf)
        first, *others = (
            x[(slice(None),) * axis + (slice(i, i - 2 or None, 2),)] for i in range(3)
        )
        for other in others:
            first = jnp.where(first >= other, first, other)  # of equals the first, as in torch
        x = first
    return x
