"""Damage a file of a finished chain, or steps.csv in the middle of a stage."""

import signal
import time

from planet_jax.runtime.files import find_damage
from planet_jax.train.checkpoint import require_checkpoint
from tests.faults.outcome import Outcome, Rng
from tests.faults.runs import CONFIG, STAGES, Home, damage, differences_of_training, end

UNFROZEN = [stage for stage in STAGES if "stage2" in stage]
WARNING = "training continues without its old rows"


def damaged_checkpoint(home: Home, rng: Rng, number: int) -> Outcome:
    """Damage a file of a checkpoint.

    If the newest `latest` is damaged, training repeats its steps from the older one. `evaluate`
    reads `best`; if the newest is damaged, it reads the older one. Every damage is detected. The
    command names a damaged checkpoint only if it is the newest of its kind.
    """
    home.copy("cache", *STAGES)
    paths = sorted(p for p in home.run.glob("*/checkpoints/*/*/**/*") if p.is_file())
    path = paths[rng.integers(len(paths))]
    stage, _, kind, step = path.relative_to(home.run).parts[:4]
    checkpoint = home.run / stage / "checkpoints" / kind / step
    is_newest = step == max((p.name for p in checkpoint.parent.iterdir()), key=int)
    what = damage(path, rng)
    detected = find_damage(checkpoint)
    if kind == "best":
        flags = f"--config={CONFIG}:{stage}", "--config.checkpoint=best"
        ended = end(home.start("evaluate", *flags))
        problem = "" if ended.status in (0, 2) and ended.is_clean else ended.output[-2000:]
    else:
        ended = end(home.start())
        problem = home.problem(ended)
    is_named = "is damaged" in ended.output
    if not detected or is_named != is_newest:
        problem += f"; detected: {detected!r}, named: {is_named}, newest: {is_newest}"
    print(f"  {what} {path.relative_to(home.run)}: {detected[:90]}", flush=True)
    return Outcome(problem, notes=[what] + ["named by the next command"] * is_named)


def damaged_steps(home: Home, rng: Rng, number: int) -> Outcome:
    """Kill a stage after a save and damage its steps.csv: only rows before the save are lost."""
    stage = UNFROZEN[number % len(UNFROZEN)]
    home.copy("cache", *STAGES[: STAGES.index(stage)])
    run, command = home.run / stage, ("train", f"--config={CONFIG}:{stage}")
    process = home.start(*command)
    while not list(run.glob("checkpoints/latest/[0-9]*")) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    end(process)
    metadata = require_checkpoint(run, "latest").metadata
    mark = metadata.log.steps
    what = damage(run / "steps.csv", rng, mark.length)
    ended = end(home.start(*command))
    if ended.status or not ended.is_clean or WARNING not in ended.output:
        problem = f"status {ended.status}: {ended.output[-2000:]}"
    else:
        problem = ", ".join(differences_of_training(home.untouched / stage, run, metadata.step))
    print(f"  steps.csv {what} after step {metadata.step} of {metadata.steps}", flush=True)
    return Outcome(problem, notes=[what])
