"""Adam as fastai v1 uses it: a learning rate for each layer group, freezing, one cycle.

Learning rates and momentum are inputs of the step, from a table computed in float64 before
training. So one compiled step serves every schedule, including the LR-range test. The
float64 table avoids the cancellation of float32 cosines at rates near 0.
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
    """The rates of n steps: `lr` float64 [n, 3], one column per group, and `beta1` float64 [n]."""

    lr: Float[np.ndarray, "n 3"]
    beta1: Float[np.ndarray, " n"]


def group_rates(lr: tuple[float, ...]) -> Float[np.ndarray, "3"]:
    """Return one peak rate for each group.

    `lr` has one rate for all groups, two rates (for the stem and the head; the rate between is
    their geometric mean), or three rates. fastai's `slice(a, b)` is `(a, b)`; its `slice(b)` is
    `(b / 10, b / 10, b)`.
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
    """Return fastai v1's one-cycle schedule (Smith 2018, arXiv:1803.09820).

    Rates rise by a cosine from rate / div to rate in the first `int(warm_up * steps)` steps, while
    momentum falls. Then rates fall while momentum rises. One step after the last, the rate
    would be rate / (div * final_div).
    """
    rising = int(warm_up * steps)
    step = np.arange(steps)
    part = np.where(step < rising, step / max(rising, 1), (step - rising) / max(steps - rising, 1))
    share = (1 - np.cos(np.pi * part)) / 2  # share of the current phase, along its cosine
    up, share_2d = (step < rising)[:, None], share[:, None]
    low, end = rates / div, rates / (div * final_div)
    high_momentum, low_momentum = momentum
    to_low = np.where(step < rising, share, 1 - share)
    return Schedule(
        lr=np.where(up, low + (rates - low) * share_2d, rates + (end - rates) * share_2d),
        beta1=high_momentum + (low_momentum - high_momentum) * to_low,
    )


def one_cycles(cycles: int, steps: int, *args: Any) -> Schedule:
    """Return `one_cycle` several times in turn, in equal shares of the steps.

    The rates restart as in Loshchilov and Hutter 2017, arXiv:1608.03983. `args` are those of
    `one_cycle` after `steps`.
    """
    parts = [one_cycle(len(part), *args) for part in np.array_split(np.arange(steps), cycles)]
    return Schedule(
        np.concatenate([part.lr for part in parts]), np.concatenate([part.beta1 for part in parts])
    )


def group_labels(params: Params) -> Params:
    """Return a tree like `params` with each parameter's layer group.

    Raises:
      ValueError: a parameter belongs to no group.
    """
    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({path: group_of(path) for path in flat})


def split_frozen(params: Params, freeze: bool) -> tuple[Params, Params]:
    """Split into (trainable, frozen); with `freeze` only the head and BatchNorms train."""
    flat = traverse_util.flatten_dict(params)
    trainable = {path: leaf for path, leaf in flat.items() if trains(path, freeze)}
    frozen = {path: leaf for path, leaf in flat.items() if path not in trainable}
    return traverse_util.unflatten_dict(trainable), traverse_util.unflatten_dict(frozen)


def merge(trainable: Params, frozen: Params) -> Params:
    """Undo `split_frozen`."""
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
    """Return Adam with decoupled weight decay and a learning rate for each group.

    The update is p (1 - lr wd) - lr adam(g) for every parameter, including BatchNorm parameters
    and biases, as with fastai's `true_wd` and `bn_wd`. `labels` is the tree of `group_labels`. The
    state does not depend on the rates, so each step builds its own optimizer from its rates.
    """
    groups = {
        group: optax.adamw(lr[i], b1=beta1, b2=beta2, eps=eps, weight_decay=weight_decay)
        for i, group in enumerate(GROUPS)
    }
    return optax.multi_transform(groups, labels)
