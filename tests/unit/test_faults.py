"""Run a seeded part of `python -m tests.faults`, and test the values that fuzzing found."""

import subprocess
import sys

import pytest

from planet_jax import config as options
from planet_jax.runtime.errors import BadInput
from tests.faults import fuzz
from tests.support import ROOT


@pytest.mark.parametrize("target", fuzz.SHARES)
def test_junk_is_taken_or_refused_in_one_line(target, tmp_path):
    count = round(2000 * fuzz.SHARES[target])
    wrong = {number: fuzz.one(target, 1, number, tmp_path) for number in range(count)}
    assert not {number: trouble for number, trouble in wrong.items() if trouble}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optim.lr", (10**400,)),  # was accepted, but is too large for a float
        ("data.size", 10**400),
        ("train.epochs", 10**18),
        ("init_from", "a\0b"),  # was accepted, but failed as a path
    ],
)
def test_values_that_fit_nowhere_are_refused(name, value):
    with pytest.raises(BadInput, match=f"config.{name} = "):
        options.check(name, value)


@pytest.mark.slow
def test_the_harness(tmp_path):
    """Try each fault of `python -m tests.faults`, except the long run and the fuzzing."""
    share = ("--kills=6", "--damages=1", "--steps-damages=1", "--full=1", "--lost-hosts=1",
             "--clocks=1", "--ctrl-c=1", "--buckets=5", "--steps=0", "--inputs=0")  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--home", str(tmp_path), *share],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
