"""The LR-range test (Smith 2017, arXiv:1506.01186) as fastai v1's `lr_find` runs it."""

import math

import jax
import numpy as np
from jaxtyping import Float

from planet_jax.runtime.errors import RunFailed
from planet_jax.runtime.progress import progress
from planet_jax.train.log import Smooth
from planet_jax.train.stage import Stage
from planet_jax.train.steps import TrainState

MOMENTUM = 0.9  # fastai leaves Adam's beta1 here during the test
STOP_ABOVE = 4.0  # times the best smoothed loss
SKIP_FIRST, SKIP_LAST = 10, 5  # points that fastai's plot and suggestions leave out
FEWEST = SKIP_FIRST + SKIP_LAST + 2  # points that leave a slope


def range_rates(steps: int, low: float, high: float) -> Float[np.ndarray, " steps"]:
    """`low (high/low)^(i/steps)` for each step i."""
    return low * (high / low) ** (np.arange(steps) / steps)


def run(stage: Stage, state: TrainState) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Learning rates (one for all groups) and smoothed losses of a test that starts at `state`.

    Weight decay is on and momentum stays at 0.9. The test stops once the smoothed loss exceeds four
    times its best, or is NaN; that last point is kept if finite. `state` itself is not touched: the
    steps are taken by a copy of it.

    Raises:
      RunFailed: the very first loss is not finite.
    """
    config = stage.config.lr_range
    rates = range_rates(config.steps, config.start_lr, config.end_lr)
    batches = stage.train_batches(steps=config.steps)
    state = jax.tree.map(lambda leaf: np.array(leaf), state)  # the step donates what it is given
    smooth, losses, best = Smooth(), [], math.inf
    with progress("LR-range test", config.steps, "steps") as advance:
        for lr in rates:
            state, loss = stage.take_step(state, next(batches), np.full(3, lr), MOMENTUM)
            value = smooth.add(float(loss))
            if not math.isfinite(value):
                break
            losses.append(value)
            best = min(best, value)
            advance(note=f"lr {lr:.1e} loss {value:.4f}")
            if value > STOP_ABOVE * best:
                break
    if not losses:
        raise RunFailed("LR-range test: the first loss is not finite; look at weights and chips")
    return rates[: len(losses)], np.array(losses)


def suggest(lrs: Float[np.ndarray, " n"], losses: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """`(min_gradient_lr, min_loss_lr_over_10)` of a whole curve, smoothed losses.

    The first 10 and last 5 points are dropped; the first suggestion is the rate where the loss
    falls fastest from point to point (the argmin of `numpy.gradient`), the second a tenth of the
    rate of the smallest loss.

    Raises:
      RunFailed: fewer than 17 points, so that no slope is left.
    """
    lrs, losses = np.asarray(lrs), np.asarray(losses)
    if len(lrs) < FEWEST:
        raise RunFailed(
            f"LR-range test: {len(lrs)} points are too few for a suggestion; raise "
            "config.lr_range.steps"
        )
    kept = slice(SKIP_FIRST, len(lrs) - SKIP_LAST)
    lrs, losses = lrs[kept], losses[kept]
    return float(lrs[np.gradient(losses).argmin()]), float(lrs[losses.argmin()] / 10)
