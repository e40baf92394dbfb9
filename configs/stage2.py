"""Train the notebook's second stage: the whole network at 128 px, from stage1's weights.

    python -m planet_jax.main --config configs/stage2.py

Expected: valid loss 0.107, F2 0.928 (fastai v1, five minutes per epoch on one GPU of 2019).
This program has not been trained on the competition's chips. The README lists what was measured.
"""

from ml_collections import ConfigDict

from planet_jax.config import get_config as base


def get_config() -> ConfigDict:
    config = base()
    config.workdir = "runs/stage2"
    config.init_from = "runs/stage1"
    config.data.source = "kaggle"
    config.data.size = 128
    config.data.batch_size = 64
    config.train.epochs = 5
    config.optim.freeze = False
    config.optim.lr = (1e-4, 2e-3)
    return config
