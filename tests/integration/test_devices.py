"""Test the same steps on different numbers of devices."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from tests.support import finish, on_devices, small_config, start_program


@pytest.mark.slow
def test_one_two_four_and_eight_devices_have_the_same_losses():
    """With global BatchNorm, losses agree to 2e-4 over 4 steps; per device, they differ.

    In float32 the loss of ResNet50's forward pass alone differs by 2e-5.
    """
    ran = subprocess.run(
        [sys.executable, "-m", "tests.losses_by_devices"],
        env=on_devices(8), capture_output=True, text=True, check=True,
    )  # fmt: skip
    losses = np.array(json.loads(ran.stdout)).reshape(2, 4, 4)
    np.testing.assert_allclose(losses[0, 1:], losses[0, :1].repeat(3, 0), rtol=2e-4)
    np.testing.assert_allclose(losses[1, 0], losses[0, 0], rtol=2e-4)
    assert (abs(losses[1, 1:, 0] - losses[0, 0, 0]) > 1e-3).all()


def test_checkpoint_of_four_devices_is_evaluated_on_one(trained, tmp_path):
    folder, _ = trained
    config = small_config(folder, checkpoint="latest", **{"data.batch_size": 2})  # 4 cannot split 2
    finish(start_program("evaluate", config))
    history = pd.read_csv(folder / "run" / "history.csv").iloc[-1]
    scores = pd.read_json(folder / "run" / "metrics.json", typ="series")
    assert scores["valid_loss"] == pytest.approx(history["valid_loss"], rel=1e-4)
