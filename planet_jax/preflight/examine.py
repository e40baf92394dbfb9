"""Compute a stage's cost, highest speed and likely speed on hardware that is not attached.

The real compilers run on any machine; no step is run. The ceiling follows from the compiled
program and the peak rates in the makers' data sheets: no device exceeds it. The estimate also needs
assumptions, which `cost` states.
"""

from typing import Any

from ml_collections import ConfigDict

from planet_jax.preflight.cost import Cost, Lower, TooLarge, measure, steps
from planet_jax.preflight.hardware import Hardware
from planet_jax.preflight.targets import Target
from planet_jax.train.stage import check_batch

# Assumed latency of an all-reduce. Measured: 8 µs for a small all-gather of four v5e
# (jax-ml.github.io/scaling-book/sharding), 6 µs for an all-reduce of two H100 (nccl issue 1259).
ALL_REDUCE_SECONDS = 10e-6
USABLE_MEMORY = 0.97  # share of the memory that the search fills; the runtime needs the rest


def examine(config: ConfigDict, target: Target, classes: int, chips: int) -> dict[str, Any]:
    """Return the costs of a stage on `target`.

    A cost is per device and train step, unless its key names another unit (`epoch_seconds`). All
    devices together reach the rates in chips per second. `chips_per_second_at_most` is the ceiling;
    `_estimate` marks what follows from the estimate.

    Args:
      config: the config of one stage.
      target: the devices.
      classes: number of labels.
      chips: number of training chips.

    Returns:
      A flat dict. Where the stage does not fit, `largest_batch` replaces the cost and the times.

    Raises:
      BadInput: the batch size is no multiple of the number of devices.
    """
    n, hardware, batch = len(target.devices), target.hardware, config.data.batch_size
    precision = config.train.precision
    check_batch(batch, config.optim.accumulate, n)
    setting = {
        "target": target.name, "devices": n, "hosts": target.hosts, "batch_size": batch,
        "device_memory_bytes": int(hardware.memory), "source": hardware.source,
    }  # fmt: skip
    lower_train, lower_predict = steps(config, classes)
    try:
        train = measure(lower_train, target, batch // n, precision)
        predict = measure(lower_predict, target, batch // n, precision)
    except TooLarge as error:
        parts = config.optim.accumulate
        fits = largest_batch(lower_train, target, precision, batch // n, error.needed, parts)
        return {**setting, "fits": False, "largest_batch": fits * n}

    compute, memory = least_seconds(train, hardware, precision)
    predict_seconds = max(least_seconds(predict, hardware, precision))
    step_seconds = estimated_seconds(train, target)
    epoch_steps = chips // batch
    return {
        **setting, "fits": True, **train._asdict(),
        "compute_seconds": compute, "memory_seconds": memory,
        "chips_per_second_at_most": batch / max(compute, memory),
        "all_reduce_seconds": all_reduce_seconds(train, target),
        "step_seconds_estimate": step_seconds, "chips_per_second_estimate": batch / step_seconds,
        "loader_chips_per_second_per_host": batch / step_seconds / target.hosts,
        "steps_per_epoch": epoch_steps, "epoch_seconds_estimate": epoch_steps * step_seconds,
        "stage_seconds_estimate": epoch_steps * step_seconds * config.train.epochs,
        **{f"predict_{name}": value for name, value in predict._asdict().items()},
        "predict_chips_per_second_at_most": batch / predict_seconds,
        "predict_chips_per_second_estimate": batch / estimated_seconds(predict, target),
    }  # fmt: skip


def least_seconds(step: Cost, hardware: Hardware, precision: str) -> tuple[float, float]:
    """Return the times of a step's products and of its transfers at the maker's rates."""
    return step.flops / hardware.peak_flops(precision), step.bytes_moved / hardware.bandwidth


def estimated_seconds(step: Cost, target: Target) -> float:
    """Estimate the time of a step: first its kernels, then its all-reduces."""
    return step.kernel_seconds + all_reduce_seconds(step, target)


def all_reduce_seconds(step: Cost, target: Target) -> float:
    """Estimate the time of a step's all-reduces, as rings that are not overlapped with kernels.

    In a ring, each of n devices sends 2 (n - 1) / n times the bytes.
    """
    n = len(target.devices)
    sent = 2 * (n - 1) / n * step.all_reduce_bytes
    latency = step.all_reduces * ALL_REDUCE_SECONDS if n > 1 else 0
    return sent / target.hardware.link + latency


def largest_batch(
    lower: Lower, target: Target, precision: str, too_large: int, needed: float, parts: int
) -> int:
    """Return the largest batch per device that fits, at most a sixteenth below the limit.

    It is a multiple of `parts`, the option optim.accumulate.

    A trial compiles the step, which takes up to a minute. To save trials, the search interpolates
    the memory between the largest batch that fits and the smallest that does not.

    Args:
      lower: lowers the train step.
      target: the devices.
      precision: the option train.precision.
      too_large: a batch per device that does not fit.
      needed: the bytes of that batch, or nan.
      parts: the parts of a batch.
    """
    too_large //= parts  # from here on, chips are those of one part
    fits, used = 0, 0.0
    while too_large - fits > (margin := max(1, fits // 16)):
        share = 0.5
        if needed > used:  # False for nan
            share = (USABLE_MEMORY * target.hardware.memory - used) / (needed - used)
        chips = fits + int(share * (too_large - fits))
        if not fits + margin <= chips <= too_large - margin:
            # Near the limit XLA recomputes activations to make a batch fit. Memory is not linear
            # there, so interpolation would advance slowly.
            chips = (fits + too_large) // 2
            if fits:
                chips = min(chips, 2 * fits)
        try:
            fits, used = chips, measure(lower, target, chips * parts, precision).peak_bytes
        except TooLarge as error:
            too_large, needed = chips, error.needed
    return fits * parts
