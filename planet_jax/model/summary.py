"""The layer table of fastai's `learn.summary()`: one row per layer, in torch's order."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util

from planet_jax.model.classifier import Classifier, trains
from planet_jax.model.resnet import NETWORKS, BasicBlock

Shape = tuple[int, ...]
Module = tuple[str, ...]  # a module's path among the variables


class Layer(NamedTuple):
    """One row; `output` is torch's shape without the batch: (channels, height, width)."""

    type: str
    output: Shape
    parameters: int
    trainable: bool


def layer_table(classes: int, size: int, freeze: bool, network: str = "resnet50") -> list[Layer]:
    """List the layers of the classifier at `size` pixels; nothing is computed."""
    model = Classifier(classes, network)
    chips = jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)
    init = functools.partial(model.init, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), chips)
    apply = functools.partial(
        model.apply, train=False, capture_intermediates=True, mutable=["intermediates"]
    )
    _, captured = jax.eval_shape(apply, variables, chips)
    outputs = {
        path[:-1]: value[0].shape[1:]
        for path, value in traverse_util.flatten_dict(captured["intermediates"]).items()
    }
    parameters = traverse_util.flatten_dict(variables["params"])
    rows = []
    for kind, module, shown in _layers(network, set(parameters)):
        shape = _torch_shape(outputs[shown])
        if kind.startswith("Adaptive"):
            shape = (*shape[:1], 1, 1)
        own = [p for p in parameters if p[:-1] == module and kind in _LEARNED]
        count = sum(parameters[path].size for path in own)
        rows.append(Layer(kind, shape, count, any(trains(path, freeze) for path in own)))
    return rows


_LEARNED = {"Conv2d", "BatchNorm2d", "BatchNorm1d", "Linear"}


def _torch_shape(shape: Shape) -> Shape:
    return (shape[-1], *shape[:-1])


def _layers(network: str, parameters: set[Module]) -> Iterator[tuple[str, Module, Module]]:
    """Yield (torch's type, our module with its parameters, our module with its output shape).

    Two kinds of layers have no output of their own here. The stem's BatchNorm also pools, and the
    BatchNorm after a 1x1 convolution to more channels also computes it.
    """

    def body(*names: str) -> Module:
        return ("backbone", *names)

    def convolution(block: Module, conv: str, norm: str) -> Iterator[tuple[str, Module, Module]]:
        yield "Conv2d", (*block, conv), (*block, norm)
        yield "BatchNorm2d", (*block, norm), (*block, norm)

    yield "Conv2d", body("conv1"), body("conv1")
    yield "BatchNorm2d", body("bn1"), body("conv1")
    yield "ReLU", (), body("conv1")
    yield "MaxPool2d", (), body("bn1")
    resnet = NETWORKS[network]()
    for stage, depth in enumerate(resnet.stage_sizes, start=1):
        for i in range(depth):
            block = body(f"layer{stage}_{i}")
            if resnet.block is BasicBlock:
                yield from convolution(block, "conv1", "bn1")
                yield "ReLU", (), (*block, "bn1")
                yield from convolution(block, "conv2", "bn2")
            else:
                for j in (1, 2, 3):
                    yield from convolution(block, f"conv{j}", f"bn{j}")
                yield "ReLU", (), (*block, "bn3")
            if (*block, "downsample_0", "kernel") in parameters:
                yield from convolution(block, "downsample_0", "downsample_1")
    yield "AdaptiveAvgPool2d", (), body()
    yield "AdaptiveMaxPool2d", (), body()
    for kind, name in (
        ("Flatten", "bn1"), ("BatchNorm1d", "bn1"), ("Dropout", "dropout1"), ("Linear", "linear1"),
        ("ReLU", "linear1"), ("BatchNorm1d", "bn2"), ("Dropout", "dropout2"), ("Linear", "linear2"),
    ):  # fmt: skip
        yield kind, ("head", name), ("head", name)
