"""The classifier: a ResNet under fastai's concat-pool head, and its three layer groups."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from planet_jax.model.layers import BATCH_AXIS, BatchNorm, Dropout
from planet_jax.model.resnet import NETWORKS

Variables = dict[str, Any]  # {"params": tree, "batch_stats": tree}
Path = tuple[str, ...]

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)
GROUPS = ("group0", "group1", "group2")  # from the stem to the head


class Head(nn.Module):
    """fastai v1's `create_head`: concat(max, average) pool, then two BN-dropout-linear blocks."""

    classes: int
    hidden: int = 512
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool, places: Int[Array, " n"] | None
    ) -> Float[Array, "n classes"]:
        # fastai: kaiming_normal_ with fan in and gain sqrt(2); biases 0
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        x = jnp.concatenate([x.max((1, 2)), x.mean((1, 2))], axis=-1)
        x = BatchNorm(self.axis_name, name="bn1")(x, train)
        x = Dropout(0.25, name="dropout1")(x, places)
        x = nn.relu(nn.Dense(self.hidden, kernel_init=init, name="linear1")(x))
        x = BatchNorm(self.axis_name, name="bn2")(x, train)
        x = Dropout(0.5, name="dropout2")(x, places)
        return nn.Dense(self.classes, kernel_init=init, name="linear2")(x)


class Classifier(nn.Module):
    """uint8 chips [N, H, W, 3] to float32 logits [N, classes].

    In training, `places` are the chips' indices in the global batch (they choose the dropout
    masks), and every BatchNorm uses the batch's statistics: those of all devices of `axis_name`,
    or the device's own when it is None.
    """

    classes: int
    network: str = "resnet50"  # a key of NETWORKS
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, chips: UInt8[Array, "n h w 3"], train: bool, places: Int[Array, " n"] | None = None
    ) -> Float[Array, "n classes"]:
        x = (chips.astype(jnp.float32) / 255 - IMAGENET_MEAN) / IMAGENET_STD
        network = NETWORKS[self.network]
        x = network(axis_name=self.axis_name, dtype=self.dtype, name="backbone")(x, train)
        return Head(self.classes, axis_name=self.axis_name, name="head")(x, train, places)


def build(
    classes: int,
    network: str = "resnet50",
    batch_norm: str = "global",
    precision: str = "float32",
) -> Classifier:
    """Build the classifier of the options model.name, model.batch_norm and train.precision."""
    axis_name = BATCH_AXIS if batch_norm == "global" else None
    return Classifier(classes, network, axis_name, jnp.dtype(precision))


def init(classes: int, seed: int, network: str = "resnet50") -> Variables:
    """Draw float32 parameters from `seed` and each parameter's name; statistics are 0 and 1."""
    return _init(Classifier(classes, network), jax.random.key(seed))


@functools.partial(jax.jit, static_argnums=0)
def _init(model: Classifier, key: Array) -> Variables:
    chips = jnp.zeros((1, 32, 32, 3), jnp.uint8)
    return dict(model.init(key, chips, train=False))


def group_of(path: Path) -> str:
    """The layer group of a parameter: fastai splits ResNet50 before layer3 and before the head.

    Raises:
      ValueError: for a parameter that belongs to no group.
    """
    match path:
        case ("head", *_):
            return "group2"
        case ("backbone", name, *_) if name.startswith(("layer3", "layer4")):
            return "group1"
        case ("backbone", name, *_) if name in ("conv1", "bn1") or name.startswith(
            ("layer1", "layer2")
        ):
            return "group0"
    raise ValueError(f"parameter {'/'.join(path)} belongs to no layer group")


def trains(path: Path, freeze: bool) -> bool:
    """Whether a parameter trains: all of them, or with `freeze` the head and every BatchNorm."""
    return not freeze or path[0] == "head" or path[-1] in ("scale", "bias")
