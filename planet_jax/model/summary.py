"""The layer table that fastai's `learn.summary()` prints: a row a layer, in torch's order."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util

from planet_jax.model.classifier import Classifier, trains
from planet_jax.model.resnet import STAGES

Shape = tuple[int, ...]


class Layer(NamedTuple):
    """One row; the output's shape is torch's, without the batch: (channels, height, width)."""

    type: str
    output: Shape
    parameters: int
    trainable: bool


def layer_table(classes: int, size: int, freeze: bool) -> list[Layer]:
    """Every layer of the classifier at `size` pixels, in fastai's order; nothing is computed."""
    model = Classifier(classes)
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
    for kind, module in _layers():
        shape = _torch_shape(outputs[module])
        if kind.startswith("Adaptive"):
            shape = (*shape[:1], 1, 1)
        own = [p for p in parameters if p[:-1] == module and kind in _LEARNED]
        count = sum(parameters[path].size for path in own)
        rows.append(Layer(kind, shape, count, any(trains(path, freeze) for path in own)))
    return rows


_LEARNED = {"Conv2d", "BatchNorm2d", "BatchNorm1d", "Linear"}


def _torch_shape(shape: Shape) -> Shape:
    return (shape[-1], *shape[:-1])


def _layers() -> Iterator[tuple[str, tuple[str, ...]]]:
    """(torch's type, the module of ours whose output has that layer's shape), in torch's order."""

    def body(*names: str) -> tuple[str, ...]:
        return ("backbone", *names)

    yield "Conv2d", body("conv1")
    yield "BatchNorm2d", body("bn1")
    yield "ReLU", body("bn1")
    yield "MaxPool2d", body("layer1_0", "conv1")
    for stage, depth in enumerate(STAGES, start=1):
        for i in range(depth):
            block = f"layer{stage}_{i}"
            for j in (1, 2, 3):
                yield "Conv2d", body(block, f"conv{j}")
                yield "BatchNorm2d", body(block, f"bn{j}")
            yield "ReLU", body(block, "bn3")
            if i == 0:
                yield "Conv2d", body(block, "downsample_0")
                yield "BatchNorm2d", body(block, "downsample_1")
    yield "AdaptiveAvgPool2d", body()
    yield "AdaptiveMaxPool2d", body()
    yield "Flatten", ("head", "bn1")
    yield "BatchNorm1d", ("head", "bn1")
    yield "Dropout", ("head", "dropout1")
    yield "Linear", ("head", "linear1")
    yield "ReLU", ("head", "linear1")
    yield "BatchNorm1d", ("head", "bn2")
    yield "Dropout", ("head", "dropout2")
    yield "Linear", ("head", "linear2")
