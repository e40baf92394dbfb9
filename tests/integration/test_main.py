"""The program in a process of its own, as users start it."""

import os
import subprocess
import sys

import pytest

from tests.support import ROOT, assert_refusal


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian", "--config=configs/smoke.py"], "trian is not a command; did you mean train"),
        (
            ["--config=configs/smoke.py", "--config.optim.lrr=3"],
            "config.optim.lrr is not an option; did you mean optim.lr?",
        ),
        (["--config=configs/smoke.py", "--config.model.weights=a.safetensors"], "no such file"),
    ],
)
def test_mistake_ends_with_one_line_and_status_2(arguments, message):
    ended = subprocess.run(
        [sys.executable, "-m", "planet_jax.main", *arguments],
        capture_output=True, text=True, cwd=ROOT, check=False,
        env=os.environ | {"JAX_PLATFORMS": ""},  # as users have it
    )  # fmt: skip
    assert_refusal(ended.returncode, ended.stdout, ended.stderr, message)
