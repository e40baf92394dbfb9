"""ResNets (He et al. 2015, arXiv:1512.03385) as torchvision builds them, without pool and fc.

Modules have torchvision's names with `_` for dots (`layer1.0.downsample.0` is
`layer1_0/downsample_0`), so the module `weights` can map tensors by name.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
from jax import lax
from jaxtyping import Array, Float

from planet_jax.model.layers import FLOAT32, Conv, Kernel, Precision, relu, stored_relu
from planet_jax.model.norm import BatchNorm, FoldedBatchNorm, PooledBatchNorm


class _Block(nn.Module):
    """What both kinds of block have: convolutions of `features` channels, and a projection."""

    features: int
    stride: int = 1
    expansion: int = 1  # output channels / features
    axis_name: str | None = None
    precision: Precision = FLOAT32
    fold_from: int = 0

    def _convolve(self, x: Array, number: int, kernel: int, stride: int, train: bool) -> Array:
        """Apply convolution `number` of the block and its norm."""
        x = Conv(self.features, kernel, stride, self.precision, name=f"conv{number}")(x)
        return BatchNorm(self.axis_name, self.precision, name=f"bn{number}")(x, train)

    def _widen(self, x: Array, conv: str, name: str, train: bool) -> Array:
        """Apply a 1x1 convolution to all output channels and its norm."""
        kernel = Kernel(self.features * self.expansion, self.precision, name=conv)(x.shape[-1])
        norm = FoldedBatchNorm(self.axis_name, self.precision, fold_from=self.fold_from, name=name)
        return norm(x, kernel, train)

    def _project(self, x: Array, shape: tuple[int, ...], train: bool) -> Array:
        """Return x, or its projection if it does not have the block's output shape."""
        if x.shape == shape:
            return x
        if self.stride > 1:  # the barrier makes XLA compute this slice once, not for each use
            x = lax.optimization_barrier(x[:, :: self.stride, :: self.stride])
        return self._widen(x, "downsample_0", "downsample_1", train)


class BasicBlock(_Block):
    """Add two 3x3 convolutions, the first with the stride, to the input or its projection."""

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 c2"]:
        y = relu(self._convolve(x, 1, 3, self.stride, train))
        y = self._convolve(y, 2, 3, 1, train)
        return stored_relu(self._project(x, y.shape, train) + y)


class Bottleneck(_Block):
    """Add 1x1 → 3x3 (with the stride) → 1x1 convolutions to the input or its projection."""

    expansion: int = 4

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 c2"]:
        y = relu(self._convolve(x, 1, 1, 1, train))
        y = relu(self._convolve(y, 2, 3, self.stride, train))
        y = self._widen(y, "conv3", "bn3", train)
        return stored_relu(self._project(x, y.shape, train) + y)


class ResNet(nn.Module):
    """Map normalized chips [N, H, W, 3] to features [N, H/32, W/32, C] in `precision.state`.

    `stage_sizes` are the numbers of blocks in layer1 to layer4; C is 512 times their expansion.
    Batch statistics are averaged over the devices of `axis_name`.
    """

    stage_sizes: tuple[int, ...]
    block: Callable[..., _Block] = Bottleneck
    axis_name: str | None = None
    precision: Precision = FLOAT32
    fold_from: int = 0  # see norm.FoldedBatchNorm

    @nn.compact
    def __call__(self, x: Float[Array, "n h w 3"], train: bool) -> Float[Array, "n h2 w2 c"]:
        x = Conv(64, 7, 2, self.precision, name="conv1")(x)
        x = relu(PooledBatchNorm(self.axis_name, self.precision, name="bn1")(x, train))
        for stage, blocks in enumerate(self.stage_sizes):
            for i in range(blocks):
                x = self.block(
                    features=64 * 2**stage,
                    stride=2 if stage > 0 and i == 0 else 1,
                    axis_name=self.axis_name,
                    precision=self.precision,
                    fold_from=self.fold_from,
                    name=f"layer{stage + 1}_{i}",
                )(x, train)
        return x.astype(self.precision.state)


ResNet18 = functools.partial(ResNet, (2, 2, 2, 2), BasicBlock)
ResNet34 = functools.partial(ResNet, (3, 4, 6, 3), BasicBlock)
ResNet50 = functools.partial(ResNet, (3, 4, 6, 3))
ResNet101 = functools.partial(ResNet, (3, 4, 23, 3))
ResNet152 = functools.partial(ResNet, (3, 8, 36, 3))
# for tests and trials
TinyResNet = functools.partial(ResNet, (1, 1, 1, 1), functools.partial(Bottleneck, expansion=1))
NETWORKS = {
    "resnet18": ResNet18, "resnet34": ResNet34, "resnet50": ResNet50, "resnet101": ResNet101,
    "resnet152": ResNet152, "tiny": TinyResNet,
}  # fmt: skip
