"""ResNet50 (He et al. 2015, arXiv:1512.03385) as torchvision builds it, without its pool and fc.

Modules carry torchvision's names with dots as underscores (`layer1.0.downsample.0` is
`layer1_0/downsample_0`), so that `imagenet` can map weights by name alone.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from planet_jax.model.layers import BatchNorm, Conv, Kernel, max_pool, relu

STAGES = (3, 4, 6, 3)  # bottlenecks in layer1 to layer4
EXPANSION = 4  # a bottleneck's output channels over its inner ones


class Bottleneck(nn.Module):
    """1x1 → 3x3 (with the stride) → 1x1, added to the input or its projection."""

    features: int
    stride: int = 1
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 c2"]:
        def conv(name: str, x: Array, features: int, kernel: int = 1, stride: int = 1) -> Array:
            return Conv(features, kernel, stride, self.dtype, name=name)(x)

        def norm(name: str, x: Array, kernel: Array | None = None) -> Array:
            return BatchNorm(self.axis_name, name=name)(x, train, kernel)

        def widen(name: str, x: Array) -> Array:
            return Kernel(self.features * EXPANSION, name=name)(x.shape[-1])

        y = relu(norm("bn1", conv("conv1", x, self.features)))
        y = relu(norm("bn2", conv("conv2", y, self.features, 3, self.stride)))
        y = norm("bn3", y, widen("conv3", y))
        if x.shape != y.shape:
            if self.stride > 1:  # made once, not by each that reads it
                x = lax.optimization_barrier(x[:, :: self.stride, :: self.stride])
            x = norm("downsample_1", x, widen("downsample_0", x))
        return relu(x + y)


class ResNet50(nn.Module):
    """Normalised float32 chips [N, H, W, 3] to float32 features [N, H/32, W/32, 2048].

    Batch statistics are averaged over the devices of `axis_name`; convolutions run in `dtype`.
    """

    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w 3"], train: bool) -> Float[Array, "n h2 w2 2048"]:
        x = Conv(64, 7, 2, self.dtype, name="conv1")(x)
        x = relu(BatchNorm(self.axis_name, name="bn1")(x, train, pool=max_pool))
        for stage, depth in enumerate(STAGES):
            for i in range(depth):
                x = Bottleneck(
                    features=64 * 2**stage,
                    stride=2 if stage > 0 and i == 0 else 1,
                    axis_name=self.axis_name,
                    dtype=self.dtype,
                    name=f"layer{stage + 1}_{i}",
                )(x, train)
        return x.astype(jnp.float32)
