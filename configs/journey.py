"""The notebook's four stages on the competition's chips, one after the other, then the scores.

    python -m planet_jax.main journey --config configs/journey.py

Expected: F2 0.926, 0.928, 0.930, 0.931 after the four stages (the notebook and fast.ai's course
run, in fastai v1). Ours has not been run on the competition's chips; see the README for what has.
"""

from ml_collections import ConfigDict

from planet_jax.config import get_config as base


def get_config() -> ConfigDict:
    config = base()
    config.stages = (
        "configs/stage1.py",
        "configs/stage2.py",
        "configs/stage1_256.py",
        "configs/stage2_256.py",
    )
    return config
