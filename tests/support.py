"""Test helpers: small data sets, small configs, and the program in a separate process."""

import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from planet_jax.config import OPTIONS, flatten, get_config
from planet_jax.train.checkpoint import open_checkpoint, require_checkpoint

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
# The repository does not contain the measured reference; without it, its tests are skipped.
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is not here")
LABELS = ["a", "b", "a b", "c"] * 6  # 20 chips train, 4 validate: 5 steps an epoch at batch 4
TIMES = {"images_per_second", "input_wait", "save_stall", "time"}  # differ in every run


def write_chips(root, labels=LABELS, size=64, seed=0):
    """Write a folder in the competition's layout: noise whose mean color depends on the label."""
    (root / "train-jpg").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    lines = ["image_name,tags"]
    for i, tags in enumerate(labels):
        base = 40 + 170 * (zlib.crc32(tags.split()[0].encode()) % 2) if tags.strip() else 128
        pixels = rng.integers(0, 40, (size, size, 3)) + base
        Image.fromarray(pixels.astype(np.uint8)).save(root / "train-jpg" / f"chip{i}.jpg")
        lines.append(f"chip{i},{tags}")
    (root / "train_v2.csv").write_text("\n".join(lines) + "\n")
    return root


def small_config(folder, **options):
    """Return a config of two epochs of five steps: tiny network, 32 px, chips in `folder`/root."""
    config = get_config()
    config.workdir = str(folder / "run")
    config.data.root, config.data.cache = str(folder / "root"), str(folder / "cache")
    config.data.size, config.data.batch_size = 32, 4
    config.model.name, config.model.weights = "tiny", "random"
    config.train.epochs = 2
    config.update_from_flattened_dict(options)
    if not (folder / "root").exists():
        write_chips(folder / "root")
    return config


def on_devices(n):
    """Return the environment of a process with n virtual devices and this repository's modules."""
    flags = f"--xla_force_host_platform_device_count={n}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


def start_program(command, config, *flags, devices=1, cwd=ROOT, **popen):
    """Start `python -m planet_jax.main COMMAND` with this config passed as flags."""
    changed = {k: v for k, v in flatten(config).items() if v != OPTIONS[k].default}
    options = [f"--config.{name}={value}" for name, value in changed.items()]
    base = ["--config", str(ROOT / "configs" / "base.py")]
    popen = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} | popen
    environment = on_devices(devices) | popen.pop("env", {})
    return subprocess.Popen(
        [sys.executable, "-m", "planet_jax.main", command, *base, *options, *flags],
        cwd=cwd, env=environment, **popen,
    )  # fmt: skip


def finish(process, status=0, seconds=300):
    """Wait for a process, check its exit status and return its output."""
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == status, output
    return output


def wait_for_rows(run, rows, *processes):
    """Wait until steps.csv has at least `rows` rows, or a process has ended."""
    table = run / "steps.csv"
    while all(process.poll() is None for process in processes):
        if table.exists() and len(table.read_text().splitlines()) > rows:
            return
        time.sleep(0.01)


def signal_after(process, run, rows, number=signal.SIGKILL):
    """Send a signal once steps.csv has at least `rows` rows; return the output."""
    wait_for_rows(run, rows, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    return output


def kill_module(module, *arguments, seconds):
    """Run `python -m MODULE`, which prints "ready", and kill it some seconds later."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=on_devices(1), stdout=pipe, stderr=pipe, text=True) as child:
        assert child.stdout.readline() == "ready\n", child.stderr.read()
        time.sleep(seconds)
        child.kill()
        _, errors = child.communicate()
    assert child.returncode in (0, -signal.SIGKILL), errors


def assert_refusal(status, stdout, stderr, message):
    """Check that a program ended with status 2 and one line, as after a user's mistake."""
    assert status == 2
    assert message in stderr
    assert len(stderr.strip().splitlines()) == 1
    assert "Traceback" not in stderr
    assert stdout == ""


def tables(run):
    """Return steps.csv and history.csv without the columns of times."""
    read = (pd.read_csv(run / name) for name in ("steps.csv", "history.csv"))
    return [table.drop(columns=TIMES & set(table.columns)) for table in read]


def assert_same_run(run, other):
    """Check that rows, weights and optimizer state of two runs are equal bit for bit."""
    for one, two in zip(tables(run), tables(other), strict=True):
        pd.testing.assert_frame_equal(one, two, check_exact=True)
    ours, theirs = (require_checkpoint(folder, "latest") for folder in (run, other))
    assert ours.metadata.step == theirs.metadata.step
    arrays, other_arrays = (c.arrays("weights", "optimizer") for c in (ours, theirs))
    assert arrays.keys() == other_arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, other_arrays[name])
    for kind in ("best", "ema"):
        one, two = (open_checkpoint(folder, kind) for folder in (run, other))
        assert (one is None) == (two is None)
        if one and two:
            assert one.metadata.step == two.metadata.step
            other_arrays = two.arrays("weights")
            for name, array in one.arrays("weights").items():
                np.testing.assert_array_equal(array, other_arrays[name])


def formula(name, shape):
    """Return the reference's weights for a state-dict name; see ../shared/reference/README.md."""
    r = np.random.default_rng(zlib.crc32(name.encode()))
    norm = "bn" in name or "downsample.1" in name
    if name.endswith("running_var"):
        array = r.uniform(0.5, 1.5, shape)
    elif name.endswith("running_mean"):
        array = 0.1 * r.standard_normal(shape)
    elif norm and name.endswith("weight"):
        array = r.uniform(0.2, 0.6, shape)
    elif norm:
        array = 0.1 * r.standard_normal(shape)
    elif len(shape) == 4:
        array = r.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    else:
        array = 0.02 * r.standard_normal(shape)
    return array.astype(np.float32)
