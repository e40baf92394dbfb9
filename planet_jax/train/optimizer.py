"""Adam as fastai v1 runs it: layer groups with their own rates, freezing, one cycle.

Learning rates and momentum are not baked into the optimiser: the step takes them as numbers, from a
table made in float64 before training. So one compiled step serves every schedule, the LR-range
test's too, and the rates are exact where float32 cosines would cancel.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import optax
from flax import traverse_util
from jaxtyping import Array, ArrayLike, Float

from planet_jax.model.classifier import GROUPS, group_of, trains

Params = dict[str, Any]


@dataclass(frozen=True)
class Schedule:
    """What is in force at each of n steps: `lr` float64 [n, 3], one column a group; `beta1` [n]."""

    lr: Float[np.ndarray, "n 3"]
    beta1: Float[np.ndarray, " n"]


def group_rates(lr: tuple[float, ...]) -> Float[np.ndarray, "3"]:
    """One rate a group: one for all; two, spaced geometrically from stem to head; or all three.

    fastai's `slice(a, b)` is the tuple of two; its `slice(b)` is `(b / 10, b / 10, b)`.
    """
    if len(lr) == 2:
        return np.geomspace(*lr, num=len(GROUPS))
    return np.broadcast_to(np.asarray(lr, np.float64), (len(GROUPS),))


def one_cycle(
    steps: int,
    rates: Float[np.ndarray, "3"],
    warm_up: float = 0.3,
    div: float = 25.0,
    final_div: float = 1e4,
    momentum: tuple[float, float] = (0.95, 0.85),
) -> Schedule:
    """fastai v1's one cycle (Smith 2018, arXiv:1803.09820), one value a step.

    The first `int(warm_up * steps)` steps rise by a cosine from rate/div to rate while momentum
    falls; the rest fall to rate/(div final_div), which no step uses, while momentum rises.
    """
    rising = int(warm_up * steps)
    step = np.arange(steps)
    part = np.where(step < rising, step / max(rising, 1), (step - rising) / max(steps - rising, 1))
    share = (1 - np.cos(np.pi * part)) / 2  # of the way through the present phase
    up, share_2d = (step < rising)[:, None], share[:, None]
    low, end = rates / div, rates / (div * final_div)
    high_momentum, low_momentum = momentum
    to_low = np.where(step < rising, share, 1 - share)
    return Schedule(
        lr=np.where(up, low + (rates - low) * share_2d, rates + (end - rates) * share_2d),
        beta1=high_momentum + (low_momentum - high_momentum) * to_low,
    )


def group_labels(params: Params) -> Params:
    """The layer group of every parameter, in the tree's own shape.

    Raises:
      ValueError: for a parameter that belongs to no group.
    """
    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({path: group_of(path) for path in flat})


def split_frozen(params: Params, freeze: bool) -> tuple[Params, Params]:
    """(trainable, frozen) parts of the tree; with `freeze` only BatchNorms and the head train."""
    flat = traverse_util.flatten_dict(params)
    trainable = {path: leaf for path, leaf in flat.items() if trains(path, freeze)}
    frozen = {path: leaf for path, leaf in flat.items() if path not in trainable}
    return traverse_util.unflatten_dict(trainable), traverse_util.unflatten_dict(frozen)


def merge(trainable: Params, frozen: Params) -> Params:
    """The whole tree again."""
    flatten = traverse_util.flatten_dict
    return traverse_util.unflatten_dict(flatten(trainable) | flatten(frozen))


def adam(
    labels: Params,
    lr: Float[Array | np.ndarray, "3"],
    beta1: Float[ArrayLike, ""],
    weight_decay: float,
    beta2: float = 0.99,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay on every parameter, a learning rate for each label.

    `labels` names the group of each parameter (`group_labels`). `p (1 - lr wd) - lr adam(g)`, as
    fastai's `true_wd` has it with `bn_wd`. Cheap to make, so a step makes its own from this step's
    rates; the state does not depend on them.
    """
    groups = {
        group: optax.adamw(lr[i], b1=beta1, b2=beta2, eps=eps, weight_decay=weight_decay)
        for i, group in enumerate(GROUPS)
    }
    return optax.multi_transform(groups, labels)
