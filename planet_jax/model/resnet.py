"""ResNets (He et al. 2015, arXiv:1512.03385) as torchvision builds them, without pool and fc.

Modules have torchvision's names with `_` for dots (`layer1.0.downsample.0` is
`layer1_0/downsample_0`), so the module `weights` can map tensors by name.
"""

import functools
from typing import Any

import flax.linen as nn
from jax import lax
from jaxtyping import Array, Float

from planet_jax.model.layers import FLOAT32, Conv, Kernel, Precision, relu
from planet_jax.model.norm import BatchNorm, FoldedBatchNorm, PooledBatchNorm


class Bottleneck(nn.Module):
    """Add 1x1 → 3x3 (with the stride) → 1x1 convolutions to the input or its projection."""

    features: int
    stride: int = 1
    expansion: int = 4  # output channels / inner channels
    axis_name: str | None = None
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 c2"]:
        conv = functools.partial(Conv, precision=self.precision)
        shared: dict[str, Any] = {"axis_name": self.axis_name, "precision": self.precision}

        def widen(x: Array, conv: str, norm: str) -> Array:
            kernel = Kernel(self.features * self.expansion, self.precision, name=conv)(x.shape[-1])
            return FoldedBatchNorm(**shared, name=norm)(x, kernel, train)

        y = conv(self.features, name="conv1")(x)
        y = relu(BatchNorm(**shared, name="bn1")(y, train))
        y = conv(self.features, 3, self.stride, name="conv2")(y)
        y = relu(BatchNorm(**shared, name="bn2")(y, train))
        y = widen(y, "conv3", "bn3")
        if x.shape != y.shape:
            if self.stride > 1:  # the barrier makes XLA compute this slice once, not for each use
                x = lax.optimization_barrier(x[:, :: self.stride, :: self.stride])
            x = widen(x, "downsample_0", "downsample_1")
        return relu(x + y)


class ResNet(nn.Module):
    """Map normalized chips [N, H, W, 3] to features [N, H/32, W/32, C] in `precision.state`.

    `stage_sizes` are the numbers of bottlenecks in layer1 to layer4; C is 512 times `expansion`.
    Batch statistics are averaged over the devices of `axis_name`.
    """

    stage_sizes: tuple[int, ...]
    expansion: int = 4
    axis_name: str | None = None
    precision: Precision = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w 3"], train: bool) -> Float[Array, "n h2 w2 c"]:
        x = Conv(64, 7, 2, self.precision, name="conv1")(x)
        x = relu(PooledBatchNorm(self.axis_name, self.precision, name="bn1")(x, train))
        for stage, blocks in enumerate(self.stage_sizes):
            for i in range(blocks):
                x = Bottleneck(
                    features=64 * 2**stage,
                    stride=2 if stage > 0 and i == 0 else 1,
                    expansion=self.expansion,
                    axis_name=self.axis_name,
                    precision=self.precision,
                    name=f"layer{stage + 1}_{i}",
                )(x, train)
        return x.astype(self.precision.state)


ResNet50 = functools.partial(ResNet, (3, 4, 6, 3))
TinyResNet = functools.partial(ResNet, (1, 1, 1, 1), expansion=1)  # for tests and trials
NETWORKS = {"resnet50": ResNet50, "tiny": TinyResNet}
