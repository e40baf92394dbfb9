"""ResNets (He et al. 2015, arXiv:1512.03385) as torchvision builds them, without pool and fc.

Modules have torchvision's names with `_` for dots (`layer1.0.downsample.0` is
`layer1_0/downsample_0`), so `weights` maps tensors by name.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from planet_jax.model.layers import BatchNorm, Conv, Kernel, max_pool, relu


class Bottleneck(nn.Module):
    """1x1 → 3x3 (with the stride) → 1x1, added to the input or its projection."""

    features: int
    stride: int = 1
    expansion: int = 4  # output channels over inner channels
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 c2"]:
        def conv(name: str, x: Array, features: int, kernel: int = 1, stride: int = 1) -> Array:
            return Conv(features, kernel, stride, self.dtype, name=name)(x)

        def norm(name: str, x: Array, kernel: Array | None = None) -> Array:
            return BatchNorm(self.axis_name, name=name)(x, train, kernel)

        def widen(name: str, x: Array) -> Array:
            return Kernel(self.features * self.expansion, name=name)(x.shape[-1])

        y = relu(norm("bn1", conv("conv1", x, self.features)))
        y = relu(norm("bn2", conv("conv2", y, self.features, 3, self.stride)))
        y = norm("bn3", y, widen("conv3", y))
        if x.shape != y.shape:
            if self.stride > 1:  # made once, not by each that reads it
                x = lax.optimization_barrier(x[:, :: self.stride, :: self.stride])
            x = norm("downsample_1", x, widen("downsample_0", x))
        return relu(x + y)


class ResNet(nn.Module):
    """Map normalized float32 chips [N, H, W, 3] to float32 features [N, H/32, W/32, C].

    `stage_sizes` are the bottlenecks of layer1 to layer4; C is 512 times `expansion`. Batch
    statistics are averaged over the devices of `axis_name`; convolutions run in `dtype`.
    """

    stage_sizes: tuple[int, ...]
    expansion: int = 4
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w 3"], train: bool) -> Float[Array, "n h2 w2 c"]:
        x = Conv(64, 7, 2, self.dtype, name="conv1")(x)
        x = relu(BatchNorm(self.axis_name, name="bn1")(x, train, pool=max_pool))
        for stage, depth in enumerate(self.stage_sizes):
            for i in range(depth):
                x = Bottleneck(
                    features=64 * 2**stage,
                    stride=2 if stage > 0 and i == 0 else 1,
                    expansion=self.expansion,
                    axis_name=self.axis_name,
                    dtype=self.dtype,
                    name=f"layer{stage + 1}_{i}",
                )(x, train)
        return x.astype(jnp.float32)


ResNet50 = functools.partial(ResNet, (3, 4, 6, 3))
TinyResNet = functools.partial(ResNet, (1, 1, 1, 1), expansion=1)  # for tests and trials
NETWORKS = {"resnet50": ResNet50, "tiny": TinyResNet}
