"""Compute a stage's cost and highest speed on hardware that is not attached.

The real compilers run on any machine; no step is run. Times are lower bounds from the peak rates in
the makers' data sheets, not estimates.
"""

from typing import Any

from ml_collections import ConfigDict

from planet_jax.preflight.cost import Lower, TooLarge, measure, steps
from planet_jax.preflight.targets import Target
from planet_jax.train.stage import check_batch

USABLE_MEMORY = 0.97  # share of the memory that the search fills; the runtime needs the rest


def examine(config: ConfigDict, target: Target, classes: int, chips: int) -> dict[str, Any]:
    """Return the costs of a stage on `target`.

    A cost is per device and train step, unless its key names another unit (`epoch_seconds`).
    `chips_per_second_at_most` and `predict_chips_per_second_at_most` are the rates of all devices.

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
    check_batch(batch, n)
    setting = {
        "target": target.name, "devices": n, "hosts": target.hosts, "batch_size": batch,
        "device_memory_bytes": int(hardware.memory), "source": hardware.source,
    }  # fmt: skip
    lower_train, lower_predict = steps(config, classes)
    try:
        train = measure(lower_train, target, batch // n)
        predict = measure(lower_predict, target, batch // n)
    except TooLarge as error:
        fits = largest_batch(lower_train, target, batch // n, error.needed)
        return {**setting, "fits": False, "largest_batch": fits * n}

    is_float32 = config.train.precision == "float32"
    peak_flops = hardware.float32_flops if is_float32 else hardware.flops
    compute, memory = train.flops / peak_flops, train.bytes_moved / hardware.bandwidth
    # In a ring all-reduce, each device sends 2 (n - 1) / n times the bytes.
    all_reduce = 2 * (n - 1) / n * train.all_reduce_bytes / hardware.link
    step_seconds = max(compute, memory)
    predict_seconds = max(
        predict.flops / peak_flops, predict.bytes_moved / hardware.bandwidth
    )  # fmt: skip
    epoch_steps = chips // batch
    return {
        **setting, "fits": True, **train._asdict(),
        "compute_seconds": compute, "memory_seconds": memory, "all_reduce_seconds": all_reduce,
        "bound_by": "compute" if compute > memory else "memory", "step_seconds": step_seconds,
        "chips_per_second_at_most": batch / step_seconds,
        "loader_chips_per_second_per_host": batch / step_seconds / target.hosts,
        "steps_per_epoch": epoch_steps, "epoch_seconds": epoch_steps * step_seconds,
        "stage_seconds": epoch_steps * step_seconds * config.train.epochs,
        **{f"predict_{name}": value for name, value in predict._asdict().items()},
        "predict_chips_per_second_at_most": batch / predict_seconds,
    }  # fmt: skip


def largest_batch(lower: Lower, target: Target, too_large: int, needed: float) -> int:
    """Return the largest batch per device that fits, at most a sixteenth below the limit.

    A trial compiles the step, which takes up to a minute. To save trials, the search interpolates
    the memory between the largest batch that fits and the smallest that does not.

    Args:
      lower: lowers the train step.
      target: the devices.
      too_large: a batch per device that does not fit.
      needed: the bytes of that batch, or nan.
    """
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
            fits, used = chips, measure(lower, target, chips).peak_bytes
        except TooLarge as error:
            too_large, needed = chips, error.needed
    return fits
