"""Train the notebook's first stage: ImageNet's ResNet50, frozen below its head, at 128 px.

    python -m planet_jax.main --config configs/stage1.py

Expected: valid loss 0.105, F2 0.926 (fastai v1, five minutes per epoch on one GPU of 2019).
This program has not been trained on the competition's chips. The README lists what was measured.
"""

from ml_collections import ConfigDict

from planet_jax.config import get_config as base


def get_config() -> ConfigDict:
    config = base()
    config.workdir = "runs/stage1"
    config.data.source = "kaggle"
    config.data.size = 128
    config.data.batch_size = 64
    config.train.epochs = 5
    config.optim.freeze = True
    config.optim.lr = (1e-2, 2e-2)
    return config
