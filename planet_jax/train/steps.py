"""The two pmapped functions of training: one training step, and the logits of a batch.

The state is replicated; batches are `[devices, chips per device, ...]`; results are equal on every
device. Gradients are those of the mean loss over the global batch.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, ArrayLike, Float, Int, Key, UInt8

from planet_jax.model.classifier import Classifier, Variables
from planet_jax.model.layers import BATCH_AXIS, mean_over_devices
from planet_jax.model.norm import fold_limit
from planet_jax.train.losses import Loss
from planet_jax.train.optimizer import Params, adam, group_labels, merge, split_frozen

VIEWS = 8  # symmetries of a square chip
Rates = dict[str, np.ndarray]  # {"lr": float32 [3], "beta1": float32 []}


@flax.struct.dataclass
class TrainState:
    """Everything that a training step changes."""

    step: ArrayLike  # int32 []: steps taken
    params: Params
    batch_stats: dict[str, Any]
    opt_state: optax.OptState  # Adam's moments of the trainable parameters
    ema: Variables | None = None  # moving averages of params and batch_stats

    @property
    def variables(self) -> Variables:
        """The variables for the classifier's `apply`."""
        return {"params": self.params, "batch_stats": self.batch_stats}


class Recipe(NamedTuple):
    """What a training step does beside the network's own work; at the defaults, the notebook's.

    Attributes:
      freeze: train only the head and BatchNorms.
      weight_decay: decoupled.
      loss: of logits and targets.
      accumulate: number of equal parts of each device's chips, taken one after the other to save
        memory. The gradients are averaged. BatchNorm uses the statistics of each part.
      clip_norm: largest norm of all gradients together; 0: not limited.
      ema_decay: of the moving averages of the weights; 0: none.
    """

    freeze: bool
    weight_decay: float
    loss: Loss = Loss()
    accumulate: int = 1
    clip_norm: float = 0.0
    ema_decay: float = 0.0


def create_state(variables: Variables, recipe: Recipe) -> TrainState:
    """Create the state before the first step, with zero moments."""
    trainable, _ = split_frozen(variables["params"], recipe.freeze)
    # Rates are inputs of the step; the optimizer's state does not depend on them.
    optimizer = adam(group_labels(trainable), np.zeros(3), np.zeros(()), 0.0)
    # Adam starts with zeros; numpy's need no compiler.
    opt_state = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(optimizer.init, trainable)
    )
    step = np.zeros((), np.int32)
    ema = variables if recipe.ema_decay else None
    return TrainState(step, variables["params"], variables["batch_stats"], opt_state, ema)


@functools.lru_cache  # so that the stages and commands of one process compile a step once
def make_train_step(
    model: Classifier, recipe: Recipe, devices: tuple[jax.Device, ...] | None = None
) -> Callable[[TrainState, dict[str, Array], Rates, Key[Array, ""]], tuple[TrainState, Array]]:
    """Make `step(state, batch, rates, key) -> (state, loss)`, which donates its input state.

    `batch` has uint8 chips [devices, b, H, W, 3] and targets [devices, b, classes]; `key` is the
    run's dropout key. Frozen parameters are not differentiated.
    """
    platform = (devices or jax.local_devices())[0].platform
    model = model.clone(fold_from=fold_limit(platform, recipe.freeze))

    def step(
        state: TrainState, batch: dict[str, Array], rates: Rates, key: Key[Array, ""]
    ) -> tuple[TrainState, Float[Array, ""]]:
        n = len(batch["chips"])
        batch_indices = lax.axis_index(BATCH_AXIS) * n + jnp.arange(n)
        rngs = {"dropout": jax.random.fold_in(key, state.step)}
        trainable, frozen = split_frozen(state.params, recipe.freeze)

        def gradients(
            batch_stats: dict[str, Any], part: tuple[Array, Array, Array]
        ) -> tuple[dict[str, Any], tuple[Array, Params]]:
            chips, targets, indices = part

            def loss_fn(trainable: Params) -> tuple[Float[Array, ""], dict[str, Any]]:
                logits, changed = model.apply(
                    {"params": merge(trainable, frozen), "batch_stats": batch_stats},
                    chips,
                    train=True,
                    batch_indices=indices,
                    rngs=rngs,
                    mutable=["batch_stats"],
                )
                return recipe.loss(logits, targets), changed["batch_stats"]

            (loss, changed), grads = jax.value_and_grad(loss_fn, has_aux=True)(trainable)
            return changed, (loss, grads)

        whole = batch["chips"], batch["targets"], batch_indices
        if recipe.accumulate == 1:
            batch_stats, (loss, grads) = gradients(state.batch_stats, whole)
        else:
            batch_stats, (loss, grads) = _accumulated(
                gradients, state.batch_stats, whole, recipe.accumulate
            )
        # Per-device statistics are averaged here; global ones are already equal on all devices.
        # The statistics form one vector: compilers combine at most about 256 arrays per all-reduce.
        stats, unravel = ravel_pytree(batch_stats)
        to_average = (loss, grads, stats if model.axis_name is None else None)
        loss, grads, averaged = mean_over_devices(to_average, BATCH_AXIS)
        if recipe.clip_norm:
            clip = optax.clip_by_global_norm(recipe.clip_norm)
            grads, _ = clip.update(grads, optax.EmptyState())
        optimizer = adam(group_labels(trainable), rates["lr"], rates["beta1"], recipe.weight_decay)
        updates, opt_state = optimizer.update(grads, state.opt_state, trainable)
        params = merge(optax.apply_updates(trainable, updates), frozen)
        batch_stats = batch_stats if averaged is None else unravel(averaged)
        ema = state.ema
        if ema is not None:
            now = {"params": params, "batch_stats": batch_stats}
            ema = _averaged(ema, now, state.step, recipe.ema_decay)
        return TrainState(state.step + 1, params, batch_stats, opt_state, ema), loss

    return jax.pmap(
        step,
        BATCH_AXIS,
        in_axes=(None, 0, None, None),
        out_axes=(None, None),
        donate_argnums=0,
        devices=devices,
    )


def _accumulated(
    gradients: Callable[[Any, Any], tuple[Any, Any]], batch_stats: Any, whole: Any, parts: int
) -> tuple[Any, Any]:
    """Return the last part's BatchNorm statistics, and the mean loss and gradients of the parts."""

    def add(carry: tuple[Any, Any], part: Any) -> tuple[tuple[Any, Any], None]:
        batch_stats, total = carry
        batch_stats, result = gradients(batch_stats, part)
        return (batch_stats, jax.tree.map(jnp.add, total, result)), None

    divided = jax.tree.map(lambda a: a.reshape(parts, len(a) // parts, *a.shape[1:]), whole)
    first = jax.tree.map(lambda a: a[0], divided)
    _, shapes = jax.eval_shape(gradients, batch_stats, first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (batch_stats, total), _ = lax.scan(add, (batch_stats, zeros), divided)
    return batch_stats, jax.tree.map(lambda leaf: leaf / parts, total)


def _averaged(ema: Variables, now: Variables, step: ArrayLike, decay: float) -> Variables:
    """Return the moving averages after a step, whose new variables are `now`.

    The decay starts at 0.1 and rises as (1 + step) / (10 + step), so that the first weights, from
    which the averages start, are soon forgotten. This is the rule of TensorFlow's
    `ExponentialMovingAverage(num_updates=step)`. BatchNorm statistics are averaged too.
    """
    # optax.incremental_update would change the last bits of frozen weights: it adds two products.
    rate = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: old + rate * (new - old), ema, now)


@functools.lru_cache
def make_predict_step(
    model: Classifier, devices: tuple[jax.Device, ...] | None = None, average: str = ""
) -> Callable[[Variables, UInt8[Array, "d b h w 3"]], Float[Array, "n classes"]]:
    """Make `predict(variables, chips) -> logits`; each device returns the global batch's logits.

    `average` is passed to `batch_logits`.
    """

    def predict(variables: Variables, chips: UInt8[Array, "b h w 3"]) -> Array:
        logits = batch_logits(model, variables, chips, average)
        return lax.all_gather(logits, BATCH_AXIS, tiled=True)

    return jax.pmap(predict, BATCH_AXIS, in_axes=(None, 0), out_axes=None, devices=devices)


def batch_logits(
    model: Classifier, variables: Variables, chips: UInt8[Array, "b s s 3"], average: str = ""
) -> Float[Array, "b classes"]:
    """Return the chips' logits with running statistics and no dropout.

    With an `average` (see `average_logits`), average over each chip's eight dihedral views. The
    views are computed on the device, one at a time to save memory.
    """

    def logits_of(chips: Array) -> Any:
        return model.apply(variables, chips, train=False)

    if average:
        views = lax.map(lambda view: logits_of(dihedral_view(chips, view)), jnp.arange(VIEWS))
        return average_logits(views, average)
    return logits_of(chips)


def dihedral_view(chips: UInt8[Array, "b s s 3"], view: Int[Array, ""]) -> UInt8[Array, "b s s 3"]:
    """Apply one of the square's eight symmetries, numbered as in `data.augment`."""
    chips = jnp.where(view & 1, chips[:, :, ::-1], chips)
    chips = jnp.where(view & 2, chips[:, ::-1], chips)
    return jnp.where(view & 4, chips.swapaxes(1, 2), chips)


def average_logits(
    logits: Float[Array, "views ..."], average: str, weights: Sequence[float] = ()
) -> Float[Array, "..."]:
    """Average logits over their first axis, equally or by `weights` that sum to 1.

    "probabilities" gives the logit of the mean probability, finite for any finite logits; "logits"
    gives the mean logit.
    """
    weight = jnp.array(weights or [1 / len(logits)] * len(logits), logits.dtype)
    weight = weight.reshape(-1, *[1] * (logits.ndim - 1))
    if average == "logits":
        return (weight * logits).sum(0)
    log_p, log_q = (jax.nn.logsumexp(jax.nn.log_sigmoid(z), 0, weight) for z in (logits, -logits))
    return log_p - log_q


def replicate(tree: Any) -> Any:
    """Copy a tree to each device of this process, in the layout in which the steps return it.

    A step that is given another layout is traced and lowered once more for its own results.
    """
    mesh = Mesh(np.array(jax.local_devices()), (BATCH_AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def to_devices(array: np.ndarray, devices: int) -> np.ndarray:
    """Reshape [n, ...] to [devices, n / devices, ...] for pmap."""
    return array.reshape(devices, len(array) // devices, *array.shape[1:])
