"""Train the notebook's last stage: the whole network at 256 px, from stage1_256's weights.

    python -m planet_jax.main --config configs/stage2_256.py

Expected: F2 0.931 (fast.ai's course run of the same recipe, in fastai v1).
This program has not been trained on the competition's chips. The README lists what was measured.
"""

from ml_collections import ConfigDict

from planet_jax.config import get_config as base


def get_config() -> ConfigDict:
    config = base()
    config.workdir = "runs/stage2_256"
    config.init_from = "runs/stage1_256"
    config.data.source = "kaggle"
    config.data.size = 256
    config.data.batch_size = 64
    config.train.epochs = 5
    config.optim.freeze = False
    config.optim.lr = (1e-5, 2e-3)
    return config
