"""The baseline of the benchmarks: a training step from Flax's own layers.

The model is ResNet50 with `nn.Conv` and `nn.BatchNorm` in the given precision, and the same head.
BatchNorm has float32 statistics per device. The step uses one pmean of all gradients, and Adam on
the trainable parameters.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from planet_jax.model.classifier import IMAGENET
from planet_jax.train.optimizer import Params, merge, split_frozen

State = tuple[Params, Params, Any]  # parameters, batch_stats, the optimizer's state


class Bottleneck(nn.Module):
    features: int
    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = partial(nn.BatchNorm, not train, momentum=0.9, dtype=self.dtype)
        strides, out = (self.stride, self.stride), 4 * self.features
        y = nn.relu(norm(name="bn1")(conv(self.features, (1, 1), name="conv1")(x)))
        y = conv(self.features, (3, 3), strides, padding=1, name="conv2")(y)
        y = nn.relu(norm(name="bn2")(y))
        y = norm(name="bn3")(conv(out, (1, 1), name="conv3")(y))
        if x.shape != y.shape:
            x = norm(name="downsample_1")(conv(out, (1, 1), strides, name="downsample_0")(x))
        return nn.relu(x + y)


class Backbone(nn.Module):
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Conv(64, (7, 7), (2, 2), 3, use_bias=False, dtype=self.dtype, name="conv1")(x)
        x = nn.BatchNorm(not train, momentum=0.9, dtype=self.dtype, name="bn1")(x)
        x = nn.max_pool(nn.relu(x), (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, depth in enumerate((3, 4, 6, 3)):
            for i in range(depth):
                stride = 2 if stage and not i else 1
                block = Bottleneck(64 * 2**stage, stride, self.dtype, name=f"layer{stage + 1}_{i}")
                x = block(x, train)
        return x.astype(jnp.float32)


class Head(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = jnp.concatenate([x.max((1, 2)), x.mean((1, 2))], -1)
        x = nn.Dropout(0.25, deterministic=not train)(nn.BatchNorm(not train, momentum=0.9)(x))
        x = nn.relu(nn.Dense(512)(x))
        x = nn.Dropout(0.5, deterministic=not train)(nn.BatchNorm(not train, momentum=0.9)(x))
        return nn.Dense(self.classes)(x)


class Classifier(nn.Module):
    classes: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, chips: jax.Array, train: bool) -> jax.Array:
        x = (chips.astype(jnp.float32) / 255 - jnp.array(IMAGENET.mean)) / jnp.array(IMAGENET.std)
        features = Backbone(self.dtype, name="backbone")(x, train)
        return Head(self.classes, name="head")(features, train)


def make(
    classes: int, freeze: bool, precision: str, devices: Sequence[jax.Device] | None = None
) -> tuple[Callable[[], State], Callable[..., tuple[State, jax.Array]]]:
    """Make `init() -> state` and `step(state, chips, targets, key) -> (state, loss)`, pmapped."""
    model = Classifier(classes, jnp.dtype(precision))
    optimizer = optax.adamw(1e-3, b2=0.99, weight_decay=1e-2)

    @jax.jit
    def init() -> State:
        chips = jnp.zeros((1, 32, 32, 3), jnp.uint8)
        variables = model.init(jax.random.key(0), chips, train=False)
        trainable, _ = split_frozen(variables["params"], freeze)
        return variables["params"], variables["batch_stats"], optimizer.init(trainable)

    def step(
        state: State, chips: jax.Array, targets: jax.Array, key: jax.Array
    ) -> tuple[State, jax.Array]:
        params, batch_stats, opt_state = state
        trainable, frozen = split_frozen(params, freeze)

        def loss_fn(trainable: Params) -> tuple[jax.Array, Params]:
            variables = {"params": merge(trainable, frozen), "batch_stats": batch_stats}
            logits, changed = model.apply(
                variables, chips, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
            )
            losses = optax.sigmoid_binary_cross_entropy(logits, targets)
            return losses.mean(), changed["batch_stats"]

        (loss, stats), gradients = jax.value_and_grad(loss_fn, has_aux=True)(trainable)
        loss, gradients, stats = jax.lax.pmean((loss, gradients, stats), "devices")
        updates, opt_state = optimizer.update(gradients, opt_state, trainable)
        params = merge(optax.apply_updates(trainable, updates), frozen)
        return (params, stats, opt_state), loss

    step = jax.pmap(
        step, "devices", in_axes=(None, 0, 0, None), out_axes=None, donate_argnums=0,
        devices=devices,
    )  # fmt: skip
    return init, step
