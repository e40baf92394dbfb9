"""The classifier: a ResNet with fastai's concat-pool head, and its three layer groups."""

import functools
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float, Int, UInt8

from planet_jax.model.layers import BATCH_AXIS, FLOAT32, PRECISIONS, Dropout, Precision
from planet_jax.model.norm import BatchNorm
from planet_jax.model.resnet import NETWORKS
from planet_jax.runtime.errors import BadInput, did_you_mean

Variables = dict[str, Any]  # {"params": tree, "batch_stats": tree}
Path = tuple[str, ...]

DROPOUT = (0.25, 0.5)  # fastai's rates before the head's two linear layers
GROUPS = ("group0", "group1", "group2")  # from the stem to the head


class Normalization(NamedTuple):
    """The mean and standard deviation of each color channel, of pixels from 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Head(nn.Module):
    """Pool features by concat(max, average) and classify, as in fastai v1's `create_head`.

    The pool is followed by two blocks of BatchNorm, dropout and a linear layer, with a ReLU between
    the blocks.
    """

    classes: int
    hidden: int = 512
    axis_name: str | None = None
    precision: Precision = FLOAT32
    dropout: tuple[float, float] = DROPOUT

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool, batch_indices: Int[Array, " n"] | None
    ) -> Float[Array, "n classes"]:
        # fastai: kaiming_normal_ with fan in and gain sqrt(2); biases 0
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        dense = functools.partial(nn.Dense, kernel_init=init, param_dtype=self.precision.state)
        norm = functools.partial(BatchNorm, self.axis_name, self.precision)
        x = jnp.concatenate([x.max((1, 2)), x.mean((1, 2))], axis=-1)
        x = norm(name="bn1")(x, train)
        x = Dropout(self.dropout[0], name="dropout1")(x, batch_indices)
        x = nn.relu(dense(self.hidden, name="linear1")(x))
        x = norm(name="bn2")(x, train)
        x = Dropout(self.dropout[1], name="dropout2")(x, batch_indices)
        return dense(self.classes, name="linear2")(x)


class Classifier(nn.Module):
    """Map uint8 chips [N, H, W, 3] to logits [N, classes] in `precision.state`.

    In training, `batch_indices` are the chips' indices in the global batch; they determine the
    dropout masks. BatchNorm then uses the statistics of the batch over all devices of `axis_name`,
    or over this device's chips if `axis_name` is None.
    """

    classes: int
    network: str = "resnet50"  # a key of NETWORKS
    axis_name: str | None = None
    precision: Precision = FLOAT32
    dropout: tuple[float, float] = DROPOUT
    normalization: Normalization = IMAGENET  # of the network's first weights
    exclusive: tuple[int, ...] = ()  # columns of labels that exclude each other
    fold_from: int = 0  # see norm.FoldedBatchNorm

    @nn.compact
    def __call__(
        self,
        chips: UInt8[Array, "n h w 3"],
        train: bool,
        batch_indices: Int[Array, " n"] | None = None,
    ) -> Float[Array, "n classes"]:
        shared: dict[str, Any] = {"axis_name": self.axis_name, "precision": self.precision}
        mean, std = (np.array(values, self.precision.state) for values in self.normalization)
        x = (chips.astype(self.precision.state) / 255 - mean) / std
        x = NETWORKS[self.network](**shared, fold_from=self.fold_from, name="backbone")(x, train)
        head = Head(self.classes, **shared, dropout=self.dropout, name="head")
        logits = head(x, train, batch_indices)
        return exclude(logits, self.exclusive) if self.exclusive else logits


def exclude(
    logits: Float[Array, "n classes"], columns: tuple[int, ...]
) -> Float[Array, "n classes"]:
    """Return logits whose sigmoids in these columns are the softmax of the columns' logits.

    The logit of a softmax's probability is z_i - log sum exp(z_j) over all j but i. All that
    follows, from scores to exported functions, then needs no second kind of logits.
    """
    group = logits[:, list(columns)]
    others = jnp.where(np.eye(len(columns), dtype=bool), -jnp.inf, group[:, None, :])
    return logits.at[:, list(columns)].set(group - jax.nn.logsumexp(others, axis=2))


def build(
    classes: int,
    network: str = "resnet50",
    batch_norm: str = "global",
    precision: str = "float32",
    normalization: Normalization = IMAGENET,
    exclusive: tuple[int, ...] = (),
) -> Classifier:
    """Build the classifier for the options model.name, model.batch_norm and train.precision.

    `exclusive` are the columns of the labels that model.exclusive names.
    """
    axis_name = BATCH_AXIS if batch_norm == "global" else None
    return Classifier(
        classes, network, axis_name, PRECISIONS[precision], normalization=normalization,
        exclusive=exclusive,
    )  # fmt: skip


def exclusive_columns(classes: Sequence[str], labels: Sequence[str]) -> tuple[int, ...]:
    """Return the columns of the labels that model.exclusive names.

    Raises:
      BadInput: a label is not in the vocabulary.
    """
    for label in labels:
        if label not in classes:
            raise BadInput(
                f"config.model.exclusive: no chip has the label {label}; "
                f"{did_you_mean(label, classes)}"
            )
    return tuple(classes.index(label) for label in labels)


def init(classes: int, seed: int, network: str = "resnet50") -> Variables:
    """Draw each float32 kernel from `seed` and its name; set means to 0 and variances to 1.

    The distributions are those of the modules' own `init`: He et al.'s (2015, arXiv:1502.01852),
    by fan out in convolutions and by fan in in linear layers. But numpy draws, so the values are
    the same on every device, and nothing is compiled.
    """
    flat = traverse_util.flatten_dict(abstract_variables(classes, network))
    return traverse_util.unflatten_dict(
        {path: _draw(path, leaf.shape, seed) for path, leaf in flat.items()}
    )


def _draw(path: Path, shape: tuple[int, ...], seed: int) -> np.ndarray:
    if path[-1] != "kernel":
        return np.full(shape, path[-1] in ("scale", "var"), np.float32)
    fan = shape[0] if len(shape) == 2 else shape[0] * shape[1] * shape[3]
    rng = np.random.default_rng([zlib.crc32("/".join(path).encode()), seed])
    return rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / fan))


def abstract_variables(classes: int, network: str = "resnet50") -> Variables:
    """Return the shapes and dtypes of the variables, without computing them."""
    chips = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8)
    init = functools.partial(Classifier(classes, network).init, train=False)
    return dict(jax.eval_shape(init, jax.random.key(0), chips))


def group_of(path: Path) -> str:
    """Return the layer group of a parameter; fastai splits before layer3 and before the head.

    Raises:
      ValueError: the parameter belongs to no group.
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
    """Return whether a parameter is trained; `freeze` trains only the head and BatchNorms."""
    return not freeze or path[0] == "head" or path[-1] in ("scale", "bias")
