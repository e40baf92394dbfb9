"""Test the same steps on different numbers of devices."""

import json
import subprocess
import sys

import jax
import numpy as np
import pandas as pd
import pytest

from tests.steps import take_steps
from tests.support import finish, on_devices, small_config, start_program


@pytest.mark.parametrize("network", ["tiny", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_four_devices_train_as_one(network):
    """The losses and statistics are equal except for the order of sums.

    The test uses float64. In float32 the order of sums changes which of two nearly equal values is
    the maximum of a pool, and a fresh ResNet50 magnifies that to percents. test_canary compares
    float32 with float64, on 1 and on 4 devices.
    """
    one, losses_of_one = take_steps(network, 1, 3, precision="float64")
    four, losses_of_four = take_steps(network, 4, 3, precision="float64")
    assert losses_of_four == pytest.approx(losses_of_one, rel=1e-9)
    assert losses_of_one[2] < losses_of_one[0]

    def compare(a, b):
        np.testing.assert_allclose(b, a, rtol=1e-8, atol=1e-8 * np.abs(a).max())

    jax.tree.map(compare, one.batch_stats, four.batch_stats)


@pytest.mark.slow
def test_one_two_four_and_eight_devices_have_the_same_losses():
    """With global BatchNorm, losses of 4 steps are equal in float64; per device, they differ."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.losses_by_devices"],
        env=on_devices(8), capture_output=True, text=True, check=True,
    )  # fmt: skip
    losses = np.array(json.loads(ran.stdout)).reshape(2, 4, 4)
    np.testing.assert_allclose(losses[0, 1:], losses[0, :1].repeat(3, 0), rtol=1e-9)
    np.testing.assert_allclose(losses[1, 0], losses[0, 0], rtol=1e-9)
    assert (abs(losses[1, 1:, 1:] - losses[0, 0, 1:]) > 1e-2).all()


def test_checkpoint_of_four_devices_is_evaluated_on_one(trained, tmp_path):
    folder, _ = trained
    config = small_config(folder, checkpoint="latest", **{"data.batch_size": 2})  # 4 cannot split 2
    finish(start_program("evaluate", config))
    history = pd.read_csv(folder / "run" / "history.csv").iloc[-1]
    scores = pd.read_json(folder / "run" / "metrics.json", typ="series")
    assert scores["valid_loss"] == pytest.approx(history["valid_loss"], rel=1e-4)
