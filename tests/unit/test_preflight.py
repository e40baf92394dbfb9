import importlib.util
import json
import os
import subprocess
import sys

import jax
import pytest

from planet_jax import commands
from planet_jax.config import get_config
from planet_jax.model import classifier
from planet_jax.preflight import cost, examine, targets
from planet_jax.preflight.cost import Cost, TooLarge
from planet_jax.preflight.hardware import HARDWARE
from planet_jax.runtime.errors import BadInput
from planet_jax.train.steps import Recipe, create_state
from tests.support import ROOT


@pytest.mark.parametrize(
    ("target", "message"),
    [("h10:8", "h10 is not a known kind of device.*; did you mean h100?"),
        ("", "--target is missing; write"),
     ("v5e:2x4", r"its compiler is missing; pip install -e '.\[preflight\]' inst"),
     ("h100:8", r"its compiler is missing; pip install -e '.\[preflight\]' inst")],
)  # fmt: skip
def test_what_cannot_be_compiled_for_is_one_line(target, message, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=message):
        targets.find(target)


@pytest.mark.parametrize(
    ("count", "message"),
    [("12", "12 GPUs do not fill hosts of 8"), ("", "missing"), ("0", "missing")],
)
def test_a_number_of_gpus_that_no_machines_have_is_refused(count, message):
    with pytest.raises(ValueError, match=message):
        targets._gpu_topology("h100", count, "")


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("saves", [False, True])
@pytest.mark.parametrize("limit", [1, 5, 37, 1000, 1001])
def test_the_largest_batch_is_found_with_few_compilations(limit, saves, parts, monkeypatch):
    """The batch is at most a sixteenth too small, even if the compiler reports no needed bytes.

    It is a multiple of the parts in which its gradients are accumulated. With `saves`, a batch near
    the limit just fits, as when XLA recomputes activations.
    """
    target, tried = targets.Target("v5e:2x2", HARDWARE["v5e"], range(4)), []

    def measure(lower, target, chips, precision):
        assert chips % parts == 0
        tried.append(chips)
        needed = target.hardware.memory * (0.1 + 0.87 * chips / limit)
        if saves and chips > limit / 2:
            needed = target.hardware.memory * (0.96 if chips <= limit else 1.9 * chips / limit)
        if chips > limit:
            raise TooLarge(needed if limit % 2 else float("nan"))
        return Cost(0, 0, needed, *[0] * 7)

    monkeypatch.setattr(examine, "measure", measure)
    largest = examine.largest_batch(None, target, "float32", 4096, float("nan"), parts)
    assert largest <= limit < largest + max(2 * parts, largest / 16 + parts)
    assert largest % parts == 0
    assert len(tried) <= 12


def test_needed_bytes_are_read_from_the_compilers_message():
    assert cost._needed_bytes("hbm: Used 17.25G of 15.75G hbm.") == 17.25 * 2**30


def run_preflight(*flags):
    env = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "planet_jax.main", "preflight", "--config=configs/smoke.py"]
    return subprocess.run([*command, *flags], cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_a_gpu_that_is_not_attached_has_the_platform_that_fold_limit_expects():
    """In a process of its own, because `find` changes the settings of JAX."""
    pytest.importorskip("jax_plugins.xla_cuda12")
    code = (
        "from planet_jax.model.norm import fold_limit; from planet_jax.preflight import targets; "
        "platform = targets.find('h100:1').devices[0].platform; "
        "print(platform, fold_limit(platform, True))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-2:] == ["gpu", "4096"]


@pytest.mark.slow
def test_the_smoke_config_is_compiled_for_a_tpu(tmp_path):
    pytest.importorskip("libtpu")
    root = f"--config.data.root={tmp_path}"  # it has no labels, so the competition's are assumed
    done = run_preflight("--target=v5e:2x2", "--json", root)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["target"] == "v5e:2x2"
    assert figures["devices"] == 4
    assert figures["fits"] is True
    # Compare the compiler's figures with figures from other sources.
    state = create_state(classifier.abstract_variables(17), Recipe(True, 1e-2))
    state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    chips = 4 * 64 * 64 * 3
    assert state_bytes + chips <= figures["argument_bytes"] <= 1.1 * (state_bytes + chips)
    gflop = 2 * 4.09 * (64 / 224) ** 2  # torchvision's figure for ResNet50, scaled by area
    assert figures["predict_flops"] / 4e9 == pytest.approx(gflop, rel=0.15)
    gradients = sum(
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
        if classifier.trains(tuple(key.key for key in path), True)
    )
    assert 4 * gradients <= figures["all_reduce_bytes"] <= 1.2 * 4 * gradients
    seconds = max(figures["flops"] / 197e12, figures["bytes_moved"] / 819e9)
    assert figures["chips_per_second_at_most"] == pytest.approx(16 / seconds)
    assert figures["chips_per_second_estimate"] < figures["chips_per_second_at_most"]
    # What the program marks S(1) fits a v5e's vector memory, and fills much of it.
    assert 2**26 < figures["fast_memory_bytes"] <= HARDWARE["v5e"].fast_memory == 2**27
    assert figures["steps_per_epoch"] == 32384 // 16
    refused = run_preflight("--target=v5e:2x2", root, "--config.data.batch_size=18")
    assert refused.returncode == 2
    assert "is not a multiple of 4 devices; the nearest: 16 or 20" in refused.stderr
    wrong = run_preflight("--target=v5e:3x5", root)
    assert wrong.returncode == 2
    assert "no such topology" in wrong.stderr.splitlines()[-1]


def test_a_stage_that_does_not_fit_is_one_line(monkeypatch, capsys, tmp_path):
    config = get_config()
    config.data.root = str(tmp_path)
    figures = {"target": "v5e:2x4", "fits": False, "largest_batch": 8000, "batch_size": 64,
             "devices": 8, "hosts": 1, "device_memory_bytes": 2**34}  # fmt: skip
    monkeypatch.setattr(targets, "find", lambda target: target)
    monkeypatch.setattr(commands, "examine", lambda *_: figures)
    with pytest.raises(BadInput, match="64 does not fit v5e:2x4; the largest that does: 8000"):
        commands.preflight(config, "v5e:2x4", True)
    assert json.loads(capsys.readouterr().out)["fits"] is False
