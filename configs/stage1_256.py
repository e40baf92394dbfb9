"""Train the notebook's third stage: frozen again, at 256 px, from stage2's weights.

    python -m planet_jax.main --config configs/stage1_256.py

Expected: F2 0.930 (fast.ai's course run of the same recipe, in fastai v1).
This program has not been trained on the competition's chips. The README lists what was measured.
"""

from ml_collections import ConfigDict

from planet_jax.config import get_config as base


def get_config() -> ConfigDict:
    config = base()
    config.workdir = "runs/stage1_256"
    config.init_from = "runs/stage2"
    config.data.source = "kaggle"
    config.data.size = 256
    config.data.batch_size = 64
    config.train.epochs = 5
    config.optim.freeze = True
    config.optim.lr = (1e-3, 1e-3, 1e-2)  # the notebook's slice(1e-2)
    return config
