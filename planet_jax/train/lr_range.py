"""The LR-range test (Smith 2017, arXiv:1506.01186) as fastai v1's `lr_find` runs it."""

import math

import jax
import numpy as np
from jaxtyping import Float

from planet_jax.runtime.errors import RunFailed
from planet_jax.runtime.progress import progress
from planet_jax.train.log import Smooth
from planet_jax.train.stage import Stage
from planet_jax.train.steps import TrainState, replicate

MOMENTUM = 0.9  # fastai keeps Adam's beta1 at this value during the test
STOP_ABOVE = 4.0  # times the best smoothed loss
SKIP_FIRST, SKIP_LAST = 10, 5  # points that fastai's plot and suggestions leave out
MIN_POINTS = SKIP_FIRST + SKIP_LAST + 2  # two remain, enough for a slope


def range_rates(steps: int, start_lr: float, end_lr: float) -> Float[np.ndarray, " steps"]:
    """Return `start_lr (end_lr / start_lr)^(i / steps)` for each step i."""
    return start_lr * (end_lr / start_lr) ** (np.arange(steps) / steps)


def run(stage: Stage, state: TrainState) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Return the learning rates (equal for all groups) and smoothed losses of a test from `state`.

    Weight decay is on and momentum stays at 0.9. The test stops when the smoothed loss is NaN or
    exceeds four times its best value. The last point is kept if it is finite. A copy of `state` is
    trained.

    Raises:
      RunFailed: the first loss is not finite.
    """
    options = stage.config.lr_range
    rates = range_rates(options.steps, options.start_lr, options.end_lr)
    batches = stage.train_batches(epochs=-(-options.steps // max(stage.steps_per_epoch, 1)))
    # The step donates its argument, so it gets a copy.
    state = replicate(jax.tree.map(lambda leaf: np.array(leaf), state))
    smooth, losses, best = Smooth(), [], math.inf
    with progress("LR-range test", options.steps, "steps") as advance:
        for lr in rates:
            state, loss = stage.train_step(state, next(batches), np.full(3, lr), MOMENTUM)
            value = smooth.add(float(loss))
            if not math.isfinite(value):
                break
            losses.append(value)
            best = min(best, value)
            advance(note=f"lr {lr:.1e} loss {value:.4f}")
            if value > STOP_ABOVE * best:
                break
    if not losses:
        raise RunFailed("LR-range test: the first loss is not finite; check the weights and chips")
    return rates[: len(losses)], np.array(losses)


def suggest(lrs: Float[np.ndarray, " n"], losses: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Return `(min_gradient_lr, min_loss_lr_over_10)` of a whole curve of smoothed losses.

    The first 10 and last 5 points are dropped. The first suggestion is the rate at the argmin of
    `numpy.gradient(losses)`; the second is a tenth of the rate of the smallest loss.

    Raises:
      RunFailed: there are fewer than 17 points.
    """
    lrs, losses = np.asarray(lrs), np.asarray(losses)
    if len(lrs) < MIN_POINTS:
        raise RunFailed(
            f"LR-range test: {len(lrs)} points are too few for a suggestion; raise "
            "config.lr_range.steps"
        )
    kept = slice(SKIP_FIRST, len(lrs) - SKIP_LAST)
    lrs, losses = lrs[kept], losses[kept]
    return float(lrs[np.gradient(losses).argmin()]), float(lrs[losses.argmin()] / 10)
