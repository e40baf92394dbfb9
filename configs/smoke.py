"""Train the frozen ResNet50 from random weights at 64 px on the drawn sample: a trial on a CPU.

    python -m planet_jax.main --config configs/smoke.py

Expected: F2 0.63 on 80 validation chips after two epochs of 320 chips. The run takes half a minute
on two cores of an AMD EPYC.
"""

from ml_collections import ConfigDict

from planet_jax.config import get_config as base


def get_config() -> ConfigDict:
    config = base()
    config.workdir = "runs/smoke"
    config.data.source = "sample"
    config.data.root = "data/sample"
    config.data.size = 64
    config.data.batch_size = 16
    config.model.weights = "random"
    config.train.epochs = 2
    config.optim.freeze = True
    return config
